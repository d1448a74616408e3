"""Time of one step and of its stages by batch size, with the roofline beside it, and a trace to open.

The floor of a step is the larger of its arithmetic over the device's bf16 matrix rate and its memory
traffic over the device's bandwidth, both measured in the same run.  Counted are the layers' matrix
products, weights, cached keys and values and convolution caches; not features, subsampling and decoding.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Final

import numpy as np
import torch

from benchmarks.random_model import CONFIGS, calibrate, make_model
from gpu_worker.engine.cuda_graphs import GraphSteps
from gpu_worker.engine.interface import EngineStats
from gpu_worker.engine.model_runner import BatchSizes
from gpu_worker.engine.steps import UNKNOWN_END
from gpu_worker.model.config import ModelConfig
from gpu_worker.model.cuda_model import CudaModel

LEFT_FRAMES: Final = 70
BATCHES: Final = (1, 8, 64, 256, 1024, 2048, 4096)
_STEPS: Final = 48


def _event() -> torch.cuda.Event:
    return torch.cuda.Event(enable_timing=True)  # type: ignore[no-untyped-call]


def measure_device(device: torch.device) -> tuple[float, float]:
    """Copy bandwidth in bytes a second (read and written) and bf16 matrix rate in operations a second."""
    source = torch.randn(1 << 28, device=device)
    target = torch.empty_like(source)
    a = torch.randn(8192, 8192, device=device, dtype=torch.bfloat16)
    b = torch.randn(8192, 8192, device=device, dtype=torch.bfloat16)
    times = []
    calls: tuple[Callable[[], object], ...] = (lambda: target.copy_(source), lambda: a @ b)
    for call in calls:
        for _ in range(3):
            call()
        begin, end = _event(), _event()
        begin.record()
        for _ in range(10):
            call()
        end.record()
        end.synchronize()
        times.append(begin.elapsed_time(end) / 1e4)
    return 2 * source.numel() * 4 / times[0], 2 * 8192**3 / times[1]


def floor_ms(config: ModelConfig, chunk_frames: int, batch: int, bandwidth: float, rate: float) -> float:
    """Least time of a step's layers."""
    width, keys = config.d_model, LEFT_FRAMES + chunk_frames
    weights = config.num_layers * width * (4 * config.ff_dim + 4 * width + 3 * width)
    products = 2 * batch * chunk_frames * (weights + config.num_layers * 2 * keys * width)
    caches = 2 * keys * width + 2 * (config.conv_kernel - 1) * width
    traffic = 2 * (weights + batch * config.num_layers * caches)
    return 1000 * max(products / rate, traffic / bandwidth)


@torch.inference_mode()
def step_table(model: str, chunk_ms: int, page_frames: int, device: str, profile: Path | None) -> str:
    """Markdown of the step times; streams of noise run on from their start until their context is full."""
    where = torch.device(device)
    torch.cuda.set_device(where)
    config, chunk = CONFIGS[model], chunk_ms // 80
    bandwidth, rate = measure_device(where)
    loaded = make_model(config, torch.bfloat16, where)
    calibrate(loaded, (LEFT_FRAMES, chunk - 1))
    largest = max(batch for batch in BATCHES if batch * chunk <= 4096 * 4)
    ring = -(-(LEFT_FRAMES + chunk) // page_frames)
    stats = EngineStats()
    steps = GraphSteps(
        CudaModel(loaded, (LEFT_FRAMES, chunk - 1)),
        num_slots=largest,
        num_pages=largest * ring,
        page_frames=page_frames,
        ring_pages=ring,
        ring_samples=4 * 1280 * chunk,
        batch_sizes=BatchSizes(1024, largest, largest),
        vad=None,
        stats=stats,
    )
    rng = np.random.default_rng(0)
    steps.ring_SC[:] = 0.1 * rng.standard_normal(steps.ring_SC.shape, dtype=np.float32)
    table = rng.permutation(largest * ring).astype(np.int32).reshape(largest, ring)
    lines = [
        (
            f"{torch.cuda.get_device_name(where)}, copies at {bandwidth / 1e12:.2f} TB/s, bf16 products at "
            f"{rate / 1e12:.0f} TFLOP/s; {model} at {chunk_ms} ms, pages of {page_frames} frames, "
            f"{len(steps.captured_sizes)} batch sizes captured in {steps.capture_s:.1f} s."
        ),
        "",
        (
            "| streams | pre_encode | encode | decode | step | floor | step over floor "
            "| bound, streams | tokens/s |"
        ),
        "| --- | --- | --- | --- | --- | --- | --- | --- | --- |",
    ]
    stages = (stats.pre_encode, stats.encode, stats.decode)
    for batch in BATCHES:
        if batch > largest:
            continue
        rows = np.zeros((5, batch), dtype=np.int32)
        rows[0], rows[2], rows[3] = np.arange(batch), chunk, UNKNOWN_END
        times, symbols = [], 0
        for number in range(_STEPS + LEFT_FRAMES // chunk):
            rows[1] = number * chunk
            before = [stage.busy_s for stage in stages]
            found = steps.wait(steps.launch(rows, table[:batch]))
            if number * chunk >= LEFT_FRAMES:
                times.append([1000 * (stage.busy_s - was) for stage, was in zip(stages, before, strict=True)])
                symbols += int(found.num_symbols_B.sum())
        middle = np.median(np.array(times), axis=0)
        step, floor = float(middle.sum()), floor_ms(config, chunk, batch, bandwidth, rate)
        lines.append(
            f"| {batch} | {middle[0]:.2f} ms | {middle[1]:.2f} ms | {middle[2]:.2f} ms | {step:.2f} ms "
            f"| {floor:.2f} ms | {step / floor:.1f} | {batch * chunk_ms / step:,.0f} "
            f"| {symbols / (len(times) * batch * chunk_ms / 1000):.1f} |"
        )
    if profile is not None:
        with torch.profiler.profile() as traced:
            steps.wait(steps.launch(rows, table[: rows.shape[1]]))
        traced.export_chrome_trace(str(profile))
        lines += [
            "",
            "| kernel of a step at the largest batch | calls | microseconds |",
            "| --- | --- | --- |",
        ]
        events = [event for event in traced.key_averages() if event.self_device_time_total > 0]
        for event in sorted(events, key=lambda event: -event.self_device_time_total)[:20]:
            lines.append(f"| `{event.key[:70]}` | {event.count} | {event.self_device_time_total:.0f} |")
    return "\n".join(lines)
