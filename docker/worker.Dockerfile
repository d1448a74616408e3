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
RUN pip install --no-cache-dir . "torch==${TORCH_VERSION}" && rm -rf /build

RUN useradd --system --create-home parakeet \
 && mkdir /models && chown parakeet /models
USER parakeet
WORKDIR /home/parakeet
ENV HF_HOME=/models
VOLUME /models
CMD ["parakeet-server", "worker"]
