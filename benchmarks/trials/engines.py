"""Engines for the benchmarks: with random weights on a device, or with simulated steps."""

from __future__ import annotations

import time
from dataclasses import dataclass
from functools import partial
from typing import Final, Protocol

import numpy as np
import torch

from benchmarks.export_random import make
from benchmarks.trials.clocks import Clock, RealClock
from benchmarks.trials.random_model import TOKENIZERS
from benchmarks.trials.simulated_steps import SimulatedSteps
from common.entries import StreamId
from common.options import StreamOptions
from common.process.pace import Pace
from gpu_worker.boosting.spelling import tree_of
from gpu_worker.engine.config import BatchSizes, EngineConfig
from gpu_worker.engine.engine import SpeechEngine
from gpu_worker.engine.phrases.book import PhraseBook
from gpu_worker.engine.slots.clock import ChunkClock
from gpu_worker.engine.steps import AllocateRings, PageShape, RingMemory, StepShape
from gpu_worker.steps.factory import make_model_engine
from gpu_worker.steps.memory import page_bytes, slot_bytes

LEFT_FRAMES = 70
_PRE_ENCODE_ROWS = 1024
# Of `large`.
_REACH_FRAMES = 1_876


class RowSizes(Protocol):
    """What an engine is built from."""

    @property
    def model(self) -> str: ...
    @property
    def chunk_ms(self) -> int: ...
    @property
    def page_frames(self) -> int: ...
    @property
    def max_rows(self) -> int: ...


@dataclass(frozen=True, slots=True)
class Built:
    """An engine and the facts for its report."""

    engine: SpeechEngine
    device: str
    precision: str
    capture_s: float
    tokens_per_second: float
    stream_bytes: int


@dataclass(frozen=True, slots=True)
class Switches:
    """Settings of an engine besides its model; the defaults are a worker's on CUDA.

    phrase_mb: memory for phrases, as --phrase-memory-mb of a worker.
    """

    turn_detection: bool = True
    audio_snapshots: bool = True
    pace_ms: float = 20.0
    phrase_mb: int = 64


DEFAULTS: Final = Switches()


def engine_config(row: RowSizes, streams: int, switches: Switches = DEFAULTS) -> EngineConfig:
    """Return the engine's sizes for a number of streams."""
    rows = min(row.max_rows, streams)
    return EngineConfig(
        num_slots=streams,
        context=(LEFT_FRAMES, row.chunk_ms // 80 - 1),
        batch_sizes=BatchSizes(min(rows, _PRE_ENCODE_ROWS), rows, rows),
        page_frames=row.page_frames,
        turn_detection=switches.turn_detection,
        audio_snapshots=switches.audio_snapshots,
        longest_pace_s=switches.pace_ms / 1000,
        phrase_bytes=switches.phrase_mb << 20,
        trees_beside=True,
    )


def build(
    row: RowSizes,
    streams: int,
    device: str,
    switches: Switches = DEFAULTS,
    rings: AllocateRings | None = None,
) -> Built:
    """Return an engine that is ready to serve: in bfloat16 with graphs on a GPU, in float32 on a CPU.

    rings: function that makes the memory of audio, as for lanes.
    """
    where = torch.device(device)
    on_cuda = where.type == "cuda"
    dtype = torch.bfloat16 if on_cuda else torch.float32
    if on_cuda:
        torch.cuda.set_device(where)
    loaded, rate = make(row.model, row.chunk_ms, dtype, where)
    if on_cuda:
        torch.cuda.empty_cache()
    engine = make_model_engine(loaded, engine_config(row, streams, switches), rings=rings)
    _warm_up(engine)
    pages = -(-(LEFT_FRAMES + row.chunk_ms // 80) // row.page_frames)
    stream_bytes = pages * page_bytes(loaded, row.page_frames) + slot_bytes(loaded)
    capture_s = float(getattr(engine.steps, "capture_s", 0.0))
    name = torch.cuda.get_device_name(where) if on_cuda else device
    return Built(engine, name, str(dtype).removeprefix("torch."), capture_s, rate, stream_bytes)


def _warm_up(engine: SpeechEngine) -> None:
    """Run all first calls before the first stream, as a worker does."""
    name = StreamId(-1)
    engine.open(name, StreamOptions())
    engine.feed(name, 0.1 * np.random.default_rng(0).standard_normal(48_000, dtype=np.float32))
    engine.finish(name)
    while engine.has_work():
        engine.step()


def build_simulated(
    row: RowSizes,
    streams: int,
    fixed_ms: float,
    row_us: float,
    switches: Switches = DEFAULTS,
    time_of: Clock | None = None,
    rings: AllocateRings = RingMemory.allocate,
) -> Built:
    """Return the same engine with steps that only take time."""
    clock = ChunkClock(160, 200, 8, row.chunk_ms // 80)
    config = engine_config(row, streams, switches)
    time_of = time_of or RealClock()
    ring_pages = -(-(LEFT_FRAMES + clock.chunk_frames) // row.page_frames)
    shape = StepShape(
        clock=clock,
        num_slots=streams,
        max_rows=config.batch_sizes.encode,
        max_chunks=1,
        frame_symbols=10,
        pages=PageShape(streams * ring_pages, row.page_frames, ring_pages, LEFT_FRAMES),
        overlaps=True,
        hears=switches.turn_detection,
        fingerprint="simulated",
        reach_frames=-(-_REACH_FRAMES // clock.chunk_frames) * clock.chunk_frames
        if switches.audio_snapshots
        else 0,
    )
    steps = SimulatedSteps(
        shape,
        ring_samples=4 * clock.chunk_samples,
        vocab_size=1000,
        fixed_ms=fixed_ms,
        row_us=row_us,
        clock=time_of,
        phrase_words=config.phrase_bytes // 4,
        rings=rings,
    )
    pace = Pace(config.longest_pace_s, time_of.now, time.thread_time)
    vocabulary = TOKENIZERS[row.model]
    book = PhraseBook(steps.trees, partial(tree_of, vocabulary), beside=config.trees_beside)
    engine = SpeechEngine(steps, vocabulary, pace=pace, book=book)
    return Built(engine, "simulated", "none", 0.0, 0.0, 0)


def memory_bytes(device: str) -> int:
    """Return the device memory in use by all processes."""
    if not device.startswith("cuda") or not torch.cuda.is_available():
        return 0
    free, total = torch.cuda.mem_get_info(torch.device(device))
    return total - free
