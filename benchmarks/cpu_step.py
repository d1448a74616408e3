"""The time of a step of a few streams of `tiny` on a CPU, from audio to results.

    python -m benchmarks.cpu_step [--streams 1] [--steps 150] [--threads 1] [--no-turn-detection]
    python -m benchmarks.cpu_step --pairs 5 --against DIR

Streams are real speech past the model's left context, in chunks of 160 ms.  A step is all work of the engine
on a chunk: samples, speech detector, encoder, decoder, text, turns.  `--against` runs the same in turn
with another checkout of this repository, each time in a fresh process: other work of a machine differs from
minute to minute.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import time
from pathlib import Path
from typing import Any, Final

import torch

from benchmarks.command_line import command_line
from benchmarks.cpu_vs_nemo import processor, speech
from common.entries import StreamId
from common.options import StreamOptions
from gpu_worker.engine.config import BatchSizes, EngineConfig
from gpu_worker.model.loading.checkpoint import load_model
from gpu_worker.steps.factory import make_model_engine

_CONTEXT: Final = (70, 1)
# Until the left context is full.
_WARM_STEPS: Final = 40
_HERE: Final = Path(__file__).parents[1]


def measure(num_streams: int, num_steps: int, *, turn_detection: bool) -> dict[str, float]:
    """Return the milliseconds of a step, by the clock and of the processor."""
    loaded = load_model(None, size="tiny", dtype=torch.float32, device=torch.device("cpu"))
    config = EngineConfig(
        num_slots=num_streams,
        context=_CONTEXT,
        batch_sizes=BatchSizes(num_streams, num_streams, num_streams),
        max_step_frames=_CONTEXT[1] + 1,
        turn_detection=turn_detection,
    )
    engine = make_model_engine(loaded, config)
    first, chunk = engine.clock.samples_of_chunks(1), engine.clock.chunk_samples
    audio = speech((first + (_WARM_STEPS + num_steps) * chunk) / 16_000)
    streams = [StreamId(number) for number in range(num_streams)]
    for stream in streams:
        engine.open(stream, StreamOptions())
    position, wall_s, cpu_s = 0, [], []
    for number in range(_WARM_STEPS + num_steps):
        count = chunk if number else first
        for stream in streams:
            engine.feed(stream, audio[position : position + count])
        position += count
        started, used = time.perf_counter(), time.process_time()
        while engine.has_work():
            engine.step()
        if number >= _WARM_STEPS:
            wall_s.append(time.perf_counter() - started)
            cpu_s.append(time.process_time() - used)
    return {
        "median_ms": round(1000 * statistics.median(wall_s), 2),
        "least_ms": round(1000 * min(wall_s), 2),
        "cpu_median_ms": round(1000 * statistics.median(cpu_s), 2),
    }


def in_process_of(tree: Path, given: argparse.Namespace) -> dict[str, float]:
    """Measure with the code of a checkout, in a process of its own."""
    command = [sys.executable, str(Path(__file__)), "--streams", str(given.streams)]
    command += ["--steps", str(given.steps), "--threads", str(given.threads)]
    command += [] if given.turn_detection else ["--no-turn-detection"]
    done = subprocess.run(
        command,
        cwd=tree,
        env=os.environ | {"PYTHONPATH": str(tree)},
        check=True,
        capture_output=True,
        text=True,
        timeout=300,
    )
    found: dict[str, float] = json.loads(done.stdout)["step"]
    return found


def compare(given: argparse.Namespace) -> dict[str, Any]:
    """Return the medians of pairs, and of their ratios of time."""
    pairs = [[in_process_of(tree, given) for tree in (_HERE, given.against)] for _ in range(given.pairs)]
    ours, others = ([pair[side]["median_ms"] for pair in pairs] for side in (0, 1))
    ratios = [other / own for own, other in zip(ours, others, strict=True)]
    return {
        "median_ms": statistics.median(ours),
        "against_median_ms": statistics.median(others),
        "ratio": round(statistics.median(ratios), 3),
        "pairs": pairs,
    }


def main() -> None:
    """Command line."""
    parser = command_line(__file__, __doc__)
    parser.add_argument("--streams", type=int, default=1, help="streams of a step")
    parser.add_argument("--steps", type=int, default=150, help="steps that are timed")
    parser.add_argument("--threads", type=int, default=1, help="CPU threads of PyTorch")
    parser.add_argument(
        "--no-turn-detection",
        dest="turn_detection",
        action="store_false",
        help="run without the speech detector",
    )
    parser.add_argument("--against", type=Path, metavar="DIR", help="another checkout to compare with")
    parser.add_argument("--pairs", type=int, default=5, help="pairs of processes, with --against")
    given = parser.parse_args()
    torch.set_num_threads(given.threads)
    if given.against is not None:
        step = compare(given)
    else:
        step = measure(given.streams, given.steps, turn_detection=given.turn_detection)
    told = {name: value for name, value in vars(given).items() if name not in ("against", "pairs")}
    print(json.dumps(told | {"step": step, "cpu": processor(), "load_average": round(os.getloadavg()[0], 1)}))


if __name__ == "__main__":
    main()
