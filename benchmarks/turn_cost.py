"""The cost of turn detection on one core, in CPU time, which depends less on other work than wall time.

    python -m benchmarks.turn_cost [--streams 1 64 1000] [--chunk-ms 160] [--json FILE]

Rows: the batched speech detector a stream (share of a core for real time), endpointing and stage a chunk,
smart-turn a question. One thread.
"""

import json
import platform
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch

from benchmarks.command_line import command_line
from common.entries import StreamId
from gpu_worker.engine.transcript import NO_TOKENS, Transcript
from gpu_worker.model.loading.checkpoint import BUNDLED
from gpu_worker.model.tokenizer import Tokenizer
from gpu_worker.turn.settings import TurnSettings
from gpu_worker.turn.smart_turn import INPUT_SAMPLES, SmartTurn
from gpu_worker.turn.stage import TurnStage
from gpu_worker.turn.vad import SileroVad

RATE = 16_000


def cpu_s(call: Callable[[], object], repeats: int) -> float:
    """Median CPU seconds of a call in this thread, after two calls for warmth."""
    call()
    call()
    times = []
    for _ in range(repeats):
        started = time.thread_time()
        call()
        times.append(time.thread_time() - started)
    return float(np.median(times))


def vad_row(num_streams: int, chunk_ms: int) -> dict[str, Any]:
    num_samples = chunk_ms * RATE // 1_000
    vad = SileroVad(num_slots=num_streams)
    samples = torch.randn(num_streams, num_samples, generator=torch.Generator().manual_seed(0)) * 0.1
    counts = torch.full((num_streams,), num_samples)
    slots = torch.arange(num_streams)
    took_s = cpu_s(lambda: vad.run(samples, counts, slots), max(5, 200 // num_streams))
    windows = num_streams * num_samples / 512
    return {
        "streams": num_streams,
        "chunk_ms": chunk_ms,
        "ms_a_step": took_s * 1e3,
        "us_a_window": took_s * 1e6 / windows,
        "cores": took_s / (chunk_ms / 1_000),
    }


def stage_us(chunk_ms: int) -> float:
    """Endpointing and stage, of one chunk of one stream."""
    stage = TurnStage()
    tokenizer = Tokenizer.from_file(BUNDLED / "tiny" / "tokenizer.model")
    stage.open(StreamId(1), TurnSettings(), Transcript(tokenizer, 0.08, with_words=False))
    num_samples = chunk_ms * RATE // 1_000
    number = 0

    def one() -> None:
        nonlocal number
        number += 1
        end = number * num_samples
        windows = end // 512 - (end - num_samples) // 512
        speaks = number // 20 % 2 == 0
        stage.push(StreamId(1), NO_TOKENS, end, probs=[0.9 if speaks else 0.01] * windows)
        stage.drain()

    def many() -> None:
        for _ in range(1_000):
            one()

    return cpu_s(many, 5) * 1e6 / 1_000


def main() -> None:
    parser = command_line(__file__, __doc__)
    parser.add_argument(
        "--streams",
        type=int,
        nargs="+",
        default=[1, 8, 64, 256, 1_000],
        help="streams of a call of the speech detector",
    )
    parser.add_argument(
        "--chunk-ms", type=int, nargs="+", default=[80, 160, 560], help="audio of one model call"
    )
    parser.add_argument("--json", type=Path, help="file to write all figures to")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    rows = [
        vad_row(num_streams, chunk_ms) for chunk_ms in arguments.chunk_ms for num_streams in arguments.streams
    ]
    print("| streams | chunk ms | ms a step | us a window | cores for real time |")
    print("|---:|---:|---:|---:|---:|")
    for row in rows:
        print(
            f"| {row['streams']} | {row['chunk_ms']} | {row['ms_a_step']:.2f} "
            f"| {row['us_a_window']:.1f} | {row['cores']:.3f} |"
        )
    stage = stage_us(160)
    smart_turn = SmartTurn()
    noise = np.random.default_rng(0).integers(-3_000, 3_000, INPUT_SAMPLES).astype(np.int16)
    question_ms = cpu_s(lambda: smart_turn.probability(noise), 10) * 1e3
    print(f"\nendpointing and stage: {stage:.1f} us a chunk; smart-turn: {question_ms:.1f} ms a question")
    if arguments.json:
        result = {
            "cpu": platform.processor() or platform.machine(),
            "torch": torch.__version__,
            "vad": rows,
            "stage_us_a_chunk": stage,
            "smart_turn_ms_a_question": question_ms,
        }
        arguments.json.write_text(json.dumps(result, indent=1) + "\n")


if __name__ == "__main__":
    main()
