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
# Traces (`--trace-endpoint`) take what the extra otel names; nothing else is taken of the package's requirements.
RUN python -c "import tomllib; print(*tomllib.load(open('pyproject.toml', 'rb'))['project']['optional-dependencies']['otel'], sep='\n')" > otel.txt \
 && pip install --no-cache-dir -r otel.txt \
 && pip install --no-cache-dir --no-deps . \
 && rm -rf /build

# A number, so that Kubernetes sees that it is not root. New volumes of compose.yaml take the folders' owner.
RUN useradd --system --uid 10001 --user-group --create-home parakeet \
 && install -d -m 0700 -o parakeet -g parakeet /secrets/redis /secrets/ingress /secrets/worker /secrets/reader /secrets/keeper
USER 10001:10001
WORKDIR /home/parakeet
ENV PARAKEET_METRICS_PORT=9090
EXPOSE 8765 8000 8050 9090
HEALTHCHECK --interval=10s --timeout=5s --start-period=60s --retries=3 \
  CMD ["python", "-c", "import urllib.request; urllib.request.urlopen('http://127.0.0.1:9090/readyz', timeout=4)"]
CMD ["parakeet-server", "ingress"]
