"""Streams of random length that come and go at full load for minutes; checks memory and lost results.

Time is the engine's own: every stream that is open gets audio as fast as steps take it.  One stream in
ten is dropped in the middle, the others are finished and must have exactly one final output.  The
engine's integrity is checked every few seconds, and at the end with everything closed.
"""

from __future__ import annotations

from argparse import Namespace
from typing import Any, Final

import numpy as np
import psutil
import torch

from benchmarks.trials.clocks import Clock, RealClock
from benchmarks.trials.engines import RowSizes, Switches, build, build_simulated
from common.entries import StreamId
from common.options import StreamOptions
from gpu_worker.engine.engine import SpeechEngine

MEAN_CHUNKS: Final = 40
DROPPED_SHARE: Final = 0.1
CHECK_S: Final = 5.0
REAL: Final = RealClock()


def run_churn(row: RowSizes, given: Namespace) -> dict[str, Any]:
    """Churn for `given.churn` minutes with `given.streams` slots."""
    if given.simulate:
        built = build_simulated(
            row,
            given.streams,
            given.simulated_ms,
            given.simulated_row_us,
            Switches(given.turn_detection),
        )
    else:
        built = build(row, given.streams, given.device, Switches(given.turn_detection))
    return {
        "row": getattr(row, "name", ""),
        "device": built.device,
        "minutes": given.churn,
        "slots": given.streams,
        **churn(
            built.engine, 60 * given.churn, on_cuda=not given.simulate and given.device.startswith("cuda")
        ),
    }


def churn(
    engine: SpeechEngine, seconds: float, *, on_cuda: bool, seed: int = 0, time_of: Clock = REAL
) -> dict[str, Any]:
    """Load the engine for a number of seconds, then let it run empty.

    Raises AssertionError if a stream gets no final, or two, or the engine's integrity check fails.
    """
    rng, clock = np.random.default_rng(seed), engine.clock
    pool = (0.1 * rng.standard_normal(20 * clock.chunk_samples + 1)).astype(np.float32)
    process, chunk = psutil.Process(), clock.chunk_samples
    left: dict[StreamId, int] = {}
    awaited: set[StreamId] = set()
    opened = finals = dropped = checks = 0
    host: list[int] = []
    device: list[int] = []
    begin = checked_at = time_of.now()
    while True:
        now = time_of.now()
        if now - begin < seconds:
            while len(left) + len(awaited) < engine.capacity:
                opened += 1
                name = StreamId(opened)
                engine.open(name, StreamOptions())
                left[name] = 1 + int(rng.exponential(MEAN_CHUNKS))
        elif not left and not awaited:
            break
        for name in list(left):
            if _samples_waiting(engine, name) > chunk:
                continue
            size = int(rng.integers(1, 2 * chunk))
            engine.feed(name, pool[:size])
            left[name] -= 1
            if left[name] <= 0 or now - begin >= seconds:
                del left[name]
                if rng.random() < DROPPED_SHARE:
                    engine.close(name)
                    dropped += 1
                else:
                    engine.finish(name)
                    awaited.add(name)
        for output in engine.step():
            assert output.failed is None, output.failed
            if output.is_final:
                awaited.remove(output.stream)
                finals += 1
        if now - checked_at >= CHECK_S:
            engine.check_integrity()
            checks, checked_at = checks + 1, now
            host.append(process.memory_info().rss)
            if on_cuda:
                free, total = torch.cuda.mem_get_info()
                device.append(total - free)
    engine.check_integrity()
    assert engine.stats.open_streams == 0
    assert finals + dropped == opened
    # Peak memory of the second half over that of the first.
    half = len(host) // 2
    growth = max(host[half:]) - max(host[:half]) if half else 0
    return {
        "streams": opened,
        "finals": finals,
        "dropped": dropped,
        "steps": engine.stats.steps,
        "integrity_checks": checks + 1,
        "host_growth_bytes": growth,
        "device_growth_bytes": device[-1] - device[0] if device else 0,
        "audio_hours": engine.stats.decode.units * 0.08 / 3600,
    }


def _samples_waiting(engine: SpeechEngine, stream: StreamId) -> int:
    """Return the samples fed and in no step yet, without waiting for the running step."""
    slot, table = engine._streams.get(stream).slot, engine._table
    planned = engine.clock.samples_of_frames(int(table.planned[slot]))
    return max(0, int(table.fed[slot]) - planned) + engine._rings.beside(slot)
