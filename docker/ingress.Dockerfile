# An ingress process and the clients: no torch, no model.
#   docker build -f docker/ingress.Dockerfile -t parakeet-ingress .
FROM python:3.12-slim

WORKDIR /build
COPY requirements/ingress.txt requirements/ingress.txt
RUN pip install --no-cache-dir -r requirements/ingress.txt
COPY pyproject.toml README.md LICENSE ./
COPY common common
COPY ingress ingress
COPY parakeet parakeet
RUN pip install --no-cache-dir --no-deps . && rm -rf /build

RUN useradd --system --create-home parakeet
USER parakeet
WORKDIR /home/parakeet
EXPOSE 8765 8000 8050
CMD ["parakeet-server", "ingress"]
