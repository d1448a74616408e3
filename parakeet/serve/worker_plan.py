"""The plan of `serve`: the number of workers, their devices and their threads."""

from __future__ import annotations

import contextlib
import json
import math
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Final

from common.errors import SettingsError
from common.process.machine import Machine
from common.settings import ServeSettings, WorkerSettings, can_have_lanes

# Most lanes that `serve` chooses by itself on a GPU. This many used up the 16 cores beside one H200
# (benchmarks/results/service_h200_2026-11-30.md); --lanes takes more.
MOST_CHOSEN_LANES: Final = 4
# Streams that fill the core of one worker process beside a GPU, and the part of a machine's cores that its
# workers take of all that a stream costs there (docs/scaling.md: 2,400, and 409 of 1,029 us).
STREAMS_PER_LANE: Final = 2_000
_WORKERS_SHARE: Final = 0.4
# Most workers that `serve` starts by itself on CPU, one a core.
MAX_CPU_WORKERS: Final = 4
# Memory of a worker on CPU, in MB: PyTorch and its libraries; the weights in float32; a stream's state (keys
# and values, convolutions) in float32. A worker of tiny with 100 slots was measured at 524 MB.
_RUNTIME_MB: Final = 450
# The weights of tiny are float16 numbers. A worker of several threads keeps such weights in both forms
# (gpu_worker/model/layers/product.py).
_FLOAT32_BYTES: Final = 4
_BYTES_IN_MEMORY: Final = {"F16": 6}
_WEIGHTS_MB: Final[dict[str, float]] = {"tiny": 72, "small": 460, "large": 2500}
_STREAM_MB: Final[dict[str, float]] = {"tiny": 1.5, "small": 6.0, "large": 16.0}
# Share of the free memory that workers may take by default.
_MEMORY_SHARE: Final = 0.7
_MB: Final = 1 << 20
_MOST_HEADER_BYTES: Final = 100_000_000  # as the library of safetensors has it


def count_gpus(device: str) -> int | None:
    """Return the number of CUDA devices that PyTorch finds, 0 if `device` excludes them.

    A separate process imports PyTorch for that, since this one must not. For `auto`, that is skipped on
    machines without the driver's control device. Returns None if the process does not answer.
    """
    if device == "cpu":
        return 0
    if device == "auto" and not any(Path(node).exists() for node in ("/dev/nvidiactl", "/dev/dxg")):
        return 0
    question = "import torch; print(torch.cuda.device_count())"
    with contextlib.suppress(subprocess.SubprocessError, OSError, ValueError, IndexError):
        answer = subprocess.run(
            [sys.executable, "-c", question], capture_output=True, timeout=120, check=True, text=True
        )
        return int(answer.stdout.split()[-1])
    return None


def check_device(device: str, num_gpus: int) -> None:
    """Raise SettingsError for a CUDA device that does not exist."""
    kind, _, index = device.partition(":")
    if kind == "cuda" and int(index or 0) >= num_gpus:
        there = {0: "no CUDA device is", 1: "only cuda:0 is"}.get(
            num_gpus, f"cuda:0 to cuda:{num_gpus - 1} are"
        )
        raise SettingsError(
            f"--device got {device!r}, but takes auto, cpu or a device that is there: {there}."
        )


def plan_workers(settings: ServeSettings, num_gpus: int, machine: Machine) -> list[WorkerSettings]:
    """Return the settings of each worker: one for each GPU, or else as many as cores and memory allow."""
    base = settings.worker
    num_workers = settings.num_workers
    if num_gpus and base.device != "cpu" and settings.choose_lanes:
        there = num_gpus if base.device in {"auto", "cuda"} else 1
        base = replace(base, lanes=_num_lanes(base, num_workers or there, machine))
    if base.device in {"auto", "cuda"} and num_gpus:
        num_workers = num_gpus if num_workers is None else num_workers
        if num_gpus == 1:
            return [base] * num_workers
        return [replace(base, device=f"cuda:{index % num_gpus}") for index in range(num_workers)]
    if base.device.startswith("cuda"):
        return [base] * (1 if num_workers is None else num_workers)
    if num_workers is None:
        num_workers = _num_cpu_workers(base, machine)
    if base.num_threads is None and num_workers:
        base = replace(base, num_threads=machine.threads_of(num_workers))
    return [base] * num_workers


def _num_lanes(worker: WorkerSettings, num_workers: int, machine: Machine) -> int:
    """Return the lanes of each worker on a GPU: as many as its streams fill and the cores allow."""
    if worker.backend != "native" or not can_have_lanes():
        return 1
    by_streams = math.ceil(worker.worker_max_streams / STREAMS_PER_LANE)
    by_cores = math.floor(machine.num_cores * _WORKERS_SHARE / num_workers) - 1  # one runs the steps
    return max(1, min(MOST_CHOSEN_LANES, by_streams, by_cores))


def _num_cpu_workers(settings: WorkerSettings, machine: Machine) -> int:
    """Return the workers on CPU: one a core, as far as memory allows.

    A worker of one thread uses one core, and two of them carry more streams than one of two threads.
    """
    if settings.backend == "null":
        return 1
    by_memory = machine.free_bytes * _MEMORY_SHARE / (_worker_mb(settings) * _MB)
    return max(1, min(MAX_CPU_WORKERS, machine.num_cores, int(by_memory)))


def _worker_mb(settings: WorkerSettings) -> float:
    """Return the memory of one worker on CPU, in MB."""
    size = settings.model_size
    weights_mb, stream_mb = _WEIGHTS_MB[size], _STREAM_MB[size]
    if settings.model:
        # The size of a model that is not fetched yet is unknown: assume the largest named size.
        path = Path(settings.model)
        files = [path] if path.is_file() else list(path.glob("*")) if path.is_dir() else []
        weights_mb = sum(map(_weights_mb, files)) if files else max(_WEIGHTS_MB.values())
        stream_mb = max(_STREAM_MB.values())
    return _RUNTIME_MB + weights_mb + settings.worker_max_streams * stream_mb


def _weights_mb(file: Path) -> float:
    """Return the memory of a model file's weights; of a file that is no safetensors, its size."""
    if file.suffix == ".safetensors":
        # Whoever loads a damaged file says what is wrong with it.
        with contextlib.suppress(OSError, ValueError, KeyError), file.open("rb") as opened:
            header = json.loads(
                opened.read(min(_MOST_HEADER_BYTES, int.from_bytes(opened.read(8), "little")))
            )
            header.pop("__metadata__", None)
            num_bytes: int = sum(
                math.prod(tensor["shape"]) * _BYTES_IN_MEMORY.get(tensor["dtype"], _FLOAT32_BYTES)
                for tensor in header.values()
            )
            return num_bytes / _MB
    return file.stat().st_size / _MB
