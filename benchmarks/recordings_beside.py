"""Latency of live streams beside recordings that are transcribed in the same engine, on a CPU.

    python -m benchmarks.recordings_beside --live 10 --recordings 0,1,4

Live streams get a chunk's audio each chunk, at phases of their own; recordings have always more audio than
the engine takes. The clock is that of the engine's thread: it goes on by the processor time of each step, and
jumps to the next audio where there is nothing to do, so that other work on the machine does not count. The
latency of a result is taken from the audio that completed its chunk.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from benchmarks.command_line import command_line
from common.entries import StreamId
from common.options import StreamOptions
from gpu_worker.engine.config import EngineConfig
from gpu_worker.engine.engine import SpeechEngine
from gpu_worker.model.loading.checkpoint import load_model
from gpu_worker.steps.factory import make_model_engine
from parakeet.audio.source import open_source

RATE = 16_000
# Audio of a recording that is in the engine and not decoded, as its ring holds it.
_AHEAD_S = 2.0
_RECORDINGS = Path(__file__).parent.parent / "parakeet" / "recordings"


@dataclass(slots=True)
class Figures:
    """Latencies of live results, in ms, and seconds of recordings decoded in `elapsed_s`."""

    latency_ms: list[float] = field(default_factory=list)
    recorded_s: float = 0.0
    elapsed_s: float = 0.0

    def row(self, live: int, recordings: int) -> str:
        p50, p95, p99 = np.percentile(self.latency_ms, (50, 95, 99))
        rate = self.recorded_s / self.elapsed_s / recordings if recordings else 0.0
        return f"| {live} | {recordings} | {p50:.1f} | {p95:.1f} | {p99:.1f} | {rate:.1f} |"


class Trial:
    """One engine, its live streams and recordings, and the clock."""

    def __init__(
        self,
        engine: SpeechEngine,
        speech: NDArray[np.float32],
        live: int,
        recordings: int,
        *,
        alike: bool = False,
    ) -> None:
        self._engine = engine
        self._speech = speech
        self._chunk = engine.clock.chunk_samples
        self._now_s = 0.0
        self._step_began_s: float | None = None
        engine._gaps.clock = self._clock
        self._figures = Figures()
        self._live = {StreamId(number + 1): number for number in range(live)}
        self._recordings = [StreamId(1000 + number) for number in range(recordings)]
        self._fed = dict.fromkeys([*self._live, *self._recordings], 0)
        self._decoded = dict.fromkeys(self._fed, 0)
        for stream in self._live:
            engine.open(stream, StreamOptions())
        for stream in self._recordings:
            engine.open(stream, StreamOptions(recording=not alike))

    def run(self, seconds: float) -> Figures:
        """Run until the clock shows this many seconds."""
        while self._now_s < seconds:
            self._feed()
            if self._engine.has_work():
                self._step()
            else:
                waits_s = self._engine.wait_s()
                then_s = min(self._due_s(stream) for stream in self._live)
                self._now_s = then_s if waits_s is None else min(then_s, self._now_s + waits_s)
        for stream in self._fed:
            self._engine.close(stream)
        self._figures.elapsed_s = self._now_s
        self._figures.recorded_s = sum(self._decoded[stream] for stream in self._recordings) / RATE
        return self._figures

    def _clock(self) -> float:
        """Return the clock's time, also during a step."""
        began_s = self._step_began_s
        return self._now_s + (0.0 if began_s is None else time.thread_time() - began_s)

    def _due_s(self, stream: StreamId) -> float:
        """Return the time of a live stream's next audio."""
        phase = self._live[stream] / len(self._live)
        return (self._fed[stream] / self._chunk + 1 + phase) * self._chunk / RATE

    def _feed(self) -> None:
        for stream in self._live:
            while self._due_s(stream) <= self._now_s:
                self._give(stream)
        for stream in self._recordings:
            while self._fed[stream] - self._decoded[stream] < _AHEAD_S * RATE:
                self._give(stream)

    def _give(self, stream: StreamId) -> None:
        start = (self._fed[stream] + 7919 * stream) % (len(self._speech) - self._chunk)
        self._engine.feed(stream, self._speech[start : start + self._chunk])
        self._fed[stream] += self._chunk

    def _step(self) -> None:
        self._step_began_s = time.thread_time()
        outputs = self._engine.step()
        self._now_s, self._step_began_s = self._clock(), None
        for output in outputs:
            phase = self._live.get(output.stream)
            self._decoded[output.stream] = output.samples_decoded
            if phase is not None:
                arrivals = -(-output.samples_decoded // self._chunk)
                came_s = (arrivals + phase / len(self._live)) * self._chunk / RATE
                self._figures.latency_ms.append(1e3 * (self._now_s - came_s))


def _speech() -> NDArray[np.float32]:
    parts = []
    for path in sorted(_RECORDINGS.glob("*.wav")):
        source = open_source(path)
        samples = np.frombuffer(b"".join(source.blocks()), "<i2")
        parts.append(samples.astype(np.float32) / 32768)
    return np.concatenate(parts)


def main(argv: Sequence[str] | None = None) -> None:
    """Print a row for each number of recordings."""
    parser = command_line(__file__, __doc__)
    parser.add_argument("--live", type=int, default=10, help="live streams")
    parser.add_argument(
        "--recordings", default="0,1,4", help="numbers of recordings beside them, with commas between"
    )
    parser.add_argument("--seconds", type=float, default=60.0, help="audio of each live stream")
    parser.add_argument("--chunk-ms", type=int, default=160, help="audio of one model call")
    parser.add_argument("--alike", action="store_true", help="recordings have no less than live streams")
    given = parser.parse_args(argv)
    torch.set_num_threads(1)
    loaded, speech = load_model(None, size="tiny"), _speech()
    print("| live streams | recordings | p50 ms | p95 ms | p99 ms | each recording, x real time |")
    print("|---|---|---|---|---|---|")
    for recordings in map(int, given.recordings.split(",")):
        context = (loaded.config.default_context[0], given.chunk_ms // 80 - 1)
        config = EngineConfig(num_slots=given.live + recordings, context=context)
        engine = make_model_engine(loaded, config)
        for seconds in (2.0, given.seconds):  # the first warms up
            figures = Trial(engine, speech, given.live, recordings, alike=given.alike).run(seconds)
        print(figures.row(given.live, recordings), flush=True)


if __name__ == "__main__":
    main()
