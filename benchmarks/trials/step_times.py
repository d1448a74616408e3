"""Time of one step and of its stages by batch size, with the roofline beside it, and a trace to open.

The floor of a step is the larger of its arithmetic over the device's bf16 matrix rate and its memory
traffic over the device's bandwidth, both measured in the same run.  Counted are the layers' matrix
products, weights, cached keys and values and convolution caches; not features, subsampling and decoding.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import numpy as np
import torch

from benchmarks.corpora.speech import speech
from benchmarks.trials.random_model import CONFIGS, calibrate, make_model
from gpu_worker.engine.config import BatchSizes
from gpu_worker.engine.slots.clock import ChunkClock
from gpu_worker.engine.steps import UNKNOWN_END, Field, PageShape, StepFindings, StepShape
from gpu_worker.model.config import ModelConfig
from gpu_worker.model.cuda_model import CudaModel
from gpu_worker.steps.cuda_graphs import GraphSteps

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


@dataclass(frozen=True, slots=True)
class StepTime:
    """Milliseconds of a step's stages at one batch size, and the symbols that it gave."""

    batch: int
    pre_encode_ms: float
    encode_ms: float
    decode_ms: float
    tokens_per_second: float

    @property
    def step_ms(self) -> float:
        """All stages."""
        return self.pre_encode_ms + self.encode_ms + self.decode_ms


class StepTimer:
    """Runs steps of streams of speech without an engine around them; captures its graphs when it is made."""

    @torch.inference_mode()
    def __init__(
        self, model: str, chunk_ms: int, page_frames: int, device: torch.device, batches: Sequence[int]
    ) -> None:
        self._chunk = chunk_ms // 80
        loaded = make_model(model, torch.bfloat16, device)
        calibrate(loaded, (LEFT_FRAMES, self._chunk - 1))
        largest = max(batches)
        ring = -(-(LEFT_FRAMES + self._chunk) // page_frames)
        shape = StepShape(
            clock=ChunkClock(160, 200, 8, self._chunk),
            num_slots=largest,
            max_rows=largest,
            max_chunks=1,
            frame_symbols=loaded.config.max_symbols,
            pages=PageShape(largest * ring, page_frames, ring, LEFT_FRAMES),
            overlaps=True,
            hears=False,
            fingerprint="",
        )
        model_under_test = CudaModel(loaded, (LEFT_FRAMES, self._chunk - 1))
        sizes = BatchSizes(min(largest, 1024), largest, largest)
        self.steps = GraphSteps(model_under_test, shape, sizes, None)
        self._stats = self.steps.stats
        rng = np.random.default_rng(0)
        samples = self.steps.rings.num_samples
        for row, offset in zip(self.steps.rings.pcm16, rng.integers(0, 1 << 20, largest + 1), strict=True):
            row[:] = np.round(32_768 * speech(int(offset), samples))
        self._table = rng.permutation(largest * ring).astype(np.int32).reshape(largest, ring)

    def _launch(self, batch: int, number: int) -> StepFindings:
        rows = np.zeros((len(Field), batch), dtype=np.int32)
        rows[Field.SLOT], rows[Field.FRAMES] = np.arange(batch), self._chunk
        rows[Field.START], rows[Field.TOTAL] = number * self._chunk, UNKNOWN_END
        return self.steps.wait(self.steps.launch(rows, self._table[:batch]))

    @torch.inference_mode()
    def measure(self, batch: int) -> StepTime:
        """Medians of the steps from where the streams' contexts are full."""
        stages = (self._stats.pre_encode, self._stats.encode, self._stats.decode)
        times, symbols = [], 0
        for number in range(_STEPS + LEFT_FRAMES // self._chunk):
            before = [stage.busy_s for stage in stages]
            found = self._launch(batch, number)
            if number * self._chunk >= LEFT_FRAMES:
                times.append([1000 * (stage.busy_s - was) for stage, was in zip(stages, before, strict=True)])
                symbols += int(found.num_symbols_B.sum())
        pre_encode, encode, decode = np.median(np.array(times), axis=0).tolist()
        audio_s = len(times) * batch * self._chunk * 0.08
        return StepTime(batch, pre_encode, encode, decode, symbols / audio_s)

    @torch.inference_mode()
    def profile(self, batch: int, path: Path) -> list[str]:
        """Write a trace of one step that a browser opens; returns a table of its kernels."""
        with torch.profiler.profile() as traced:
            self._launch(batch, _STEPS)
        traced.export_chrome_trace(str(path))
        events = [event for event in traced.key_averages() if event.self_device_time_total > 0]
        return [
            f"| kernel of a step of {batch} streams | calls | microseconds |",
            "| --- | --- | --- |",
            *(
                f"| `{event.key[:70]}` | {event.count} | {event.self_device_time_total:.0f} |"
                for event in sorted(events, key=lambda event: -event.self_device_time_total)[:20]
            ),
        ]


def step_table(model: str, chunk_ms: int, page_frames: int, device: str, profile: Path | None) -> str:
    """Markdown of the step times by batch size."""
    where = torch.device(device)
    torch.cuda.set_device(where)
    config, chunk = CONFIGS[model], chunk_ms // 80
    bandwidth, rate = measure_device(where)
    batches = [batch for batch in BATCHES if batch * chunk <= 4096 * 4]
    timer = StepTimer(model, chunk_ms, page_frames, where, batches)
    lines = [
        (
            f"{torch.cuda.get_device_name(where)}, copies at {bandwidth / 1e12:.2f} TB/s, bf16 products at "
            f"{rate / 1e12:.0f} TFLOP/s; {model} at {chunk_ms} ms, pages of {page_frames} frames, "
            f"{len(timer.steps.captured_sizes)} batch sizes captured in {timer.steps.capture_s:.1f} s."
        ),
        "",
        (
            "| streams | pre_encode | encode | decode | step | floor | step over floor "
            "| bound, streams | tokens/s |"
        ),
        "| --- | --- | --- | --- | --- | --- | --- | --- | --- |",
    ]
    for batch in batches:
        time, floor = timer.measure(batch), floor_ms(config, chunk, batch, bandwidth, rate)
        lines.append(
            f"| {batch} | {time.pre_encode_ms:.2f} ms | {time.encode_ms:.2f} ms | {time.decode_ms:.2f} ms "
            f"| {time.step_ms:.2f} ms | {floor:.2f} ms | {time.step_ms / floor:.1f} "
            f"| {batch * chunk_ms / time.step_ms:,.0f} | {time.tokens_per_second:.1f} |"
        )
    if profile is not None:
        lines += ["", *timer.profile(batches[-1], profile)]
    return "\n".join(lines)
