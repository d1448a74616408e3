# A worker: torch and the model code. CUDA libraries come with torch's wheels; the host has the driver.
#   docker build -f docker/worker.Dockerfile -t parakeet-worker .
# Without CUDA, some GB smaller:
#   docker build --build-arg PIP_TORCH_ARGS="--index-url https://download.pytorch.org/whl/cpu" ...
FROM python:3.12-slim

# Triton compiles a launcher for each kernel when it is first used.
RUN apt-get update \
 && apt-get install -y --no-install-recommends gcc libc6-dev \
 && rm -rf /var/lib/apt/lists/*

ARG TORCH_VERSION=2.13.0
ARG PIP_TORCH_ARGS=""
RUN pip install --no-cache-dir "torch==${TORCH_VERSION}" ${PIP_TORCH_ARGS}

WORKDIR /build
COPY pyproject.toml README.md LICENSE ./
COPY common common
COPY gpu_worker gpu_worker
COPY parakeet parakeet
RUN pip install --no-cache-dir ".[otel]" "torch==${TORCH_VERSION}" && rm -rf /build

# A number, so that Kubernetes sees that it is not root. New volumes take the folders' owner.
RUN useradd --system --uid 10001 --user-group --create-home parakeet \
 && install -d -m 0700 -o parakeet -g parakeet /models /secrets/worker
USER 10001:10001
WORKDIR /home/parakeet
ENV HF_HOME=/models TRITON_CACHE_DIR=/tmp/triton PARAKEET_METRICS_PORT=9090
VOLUME /models
EXPOSE 9090
# Not ready while the model loads, and without its lease, which a hung engine loses.
HEALTHCHECK --interval=10s --timeout=5s --start-period=30m --retries=3 \
  CMD ["python", "-c", "import urllib.request; urllib.request.urlopen('http://127.0.0.1:9090/readyz', timeout=4)"]
CMD ["parakeet-server", "worker"]
