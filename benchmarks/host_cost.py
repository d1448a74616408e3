"""Processor time of the engine's thread for a chunk, by part, over simulated steps that take no time.

    python -m benchmarks.host_cost [--streams 4000] [--rounds 30] [--no-turn-detection]

Every stream gets a chunk a round, as pcm16, at `large`'s sizes and 160 ms, with three tokens and talk of
seconds and pauses (benchmarks/trials/simulated_steps.py). `feed` includes the loop that calls it.
"""

from __future__ import annotations

import time
from itertools import repeat

import numpy as np

from benchmarks.command_line import command_line
from benchmarks.corpora.speech import recordings, speech
from benchmarks.engine import ROWS
from benchmarks.trials.engines import Switches, build_simulated
from common.entries import StreamId
from common.options import StreamOptions

# Until slots, pages and caches are as in the midst of a service.
_WARM_ROUNDS = 5


def measure(streams: int, rounds: int, *, turn_detection: bool) -> tuple[float, float, float]:
    """Return microseconds of `feed` and of `step` for a chunk, and outputs for a chunk."""
    engine = build_simulated(
        ROWS["large-160"], streams, 0.0, 0.0, Switches(turn_detection, pace_ms=0.0)
    ).engine
    chunk, first = engine.clock.chunk_samples, engine.clock.samples_of_chunks(1)
    pcm16 = np.round(32_768 * speech(0, len(recordings()) + chunk)).astype(np.int16)
    offsets = np.random.default_rng(0).integers(0, len(recordings()), streams).tolist()
    names = [StreamId(number + 1) for number in range(streams)]
    for name in names:
        engine.open(name, StreamOptions())
    feed_s = step_s = 0.0
    outputs = 0
    for number in range(_WARM_ROUNDS + rounds):
        began_s, found = time.thread_time(), 0
        for name, at, size in zip(names, offsets, repeat(chunk if number else first), strict=False):
            engine.feed(name, pcm16[at : at + size])
        fed_s = time.thread_time()
        while engine.has_work():
            found += len(engine.step())
        if number >= _WARM_ROUNDS:
            feed_s, step_s = feed_s + fed_s - began_s, step_s + time.thread_time() - fed_s
            outputs += found
    chunks = streams * rounds
    return 1e6 * feed_s / chunks, 1e6 * step_s / chunks, outputs / chunks


def main() -> None:
    """Command line."""
    parser = command_line(__file__, __doc__)
    parser.add_argument("--streams", type=int, default=4_000, help="streams that get a chunk a round")
    parser.add_argument("--rounds", type=int, default=30, help="rounds that are timed")
    parser.add_argument(
        "--no-turn-detection",
        dest="turn_detection",
        action="store_false",
        help="run without the speech detector",
    )
    given = parser.parse_args()
    feed, step, outputs = measure(given.streams, given.rounds, turn_detection=given.turn_detection)
    print(
        f"{given.streams} streams, turn detection {'on' if given.turn_detection else 'off'}: "
        f"feed {feed:.2f} us, step {step:.2f} us a chunk, {outputs:.2f} outputs a chunk"
    )


if __name__ == "__main__":
    main()
