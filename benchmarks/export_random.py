"""Write a random model of real dimensions as a folder that `--model FOLDER` loads, and check its token rate.

    python -m benchmarks.export_random --model large --chunk-ms 160 --to /tmp/large
    python -m benchmarks.export_random --model small --chunk-ms 160 --check-s 120 --streams 8

The rate is that of the engine that a worker would run on the device, on the bundled recordings at seeded
offsets, in parts of 20 s: it must not drift.
"""

from __future__ import annotations

import json
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch

from benchmarks.command_line import command_line
from benchmarks.corpora.speech import recordings, speech
from benchmarks.trials.random_model import CONFIGS, SETTINGS, calibrate, make_model
from common.entries import StreamId
from common.options import StreamOptions
from gpu_worker.engine.config import BatchSizes, EngineConfig
from gpu_worker.model.loaded_model import LoadedModel
from gpu_worker.model.loading.export import DTYPES, write_export
from gpu_worker.steps.factory import make_model_engine

PART_S = 20
_LEFT_FRAMES = 70
# A few streams are enough, and a CPU must carry them.
_CPU_STREAMS = 3


def make(name: str, chunk_ms: int, dtype: torch.dtype, device: torch.device) -> tuple[LoadedModel, float]:
    """Return a calibrated model and its token rate on the calibration audio."""
    loaded = make_model(name, dtype, device)
    context = (_LEFT_FRAMES, chunk_ms // 80 - 1)
    if device.type == "cuda":
        return loaded, calibrate(loaded, context)
    return loaded, calibrate(loaded, context, streams=_CPU_STREAMS, seconds=28.0)


def export(name: str, chunk_ms: int, dtype: torch.dtype, device: torch.device, folder: Path) -> float:
    """Write the folder, unless it is there already; returns the calibrated rate, 0 when it was there.

    Another process that writes the same folder does no harm: it appears whole or not at all.
    """
    if folder.is_dir():
        return 0.0
    loaded, rate = make(name, chunk_ms, dtype, device)
    settings = {
        **SETTINGS[name],
        "parakeet": {"default_att_context_size": [_LEFT_FRAMES, chunk_ms // 80 - 1]},
    }
    # JSON is YAML.
    write_export(loaded, json.dumps(settings), folder, origin=loaded.source, revision=None)
    return rate


def rates(loaded: LoadedModel, chunk_ms: int, streams: int, seconds: int) -> list[float]:
    """Return the tokens per second of audio of a stream, for each part of `PART_S`."""
    config = EngineConfig(
        num_slots=streams,
        context=(_LEFT_FRAMES, chunk_ms // 80 - 1),
        batch_sizes=BatchSizes(streams, streams, streams),
        max_step_frames=14,
        turn_detection=False,
    )
    engine = make_model_engine(loaded, config)
    offsets = np.random.default_rng(1).integers(0, len(recordings()), streams).tolist()
    for number in range(streams):
        engine.open(StreamId(number + 1), StreamOptions())
    found: list[float] = []
    for first in range(0, seconds, PART_S):
        part_s, before = min(PART_S, seconds - first), engine.stats.tokens
        for second in range(first, first + part_s):
            for number, offset in enumerate(offsets):
                engine.feed(StreamId(number + 1), speech(offset + second * 16_000, 16_000))
            while engine.has_work():
                engine.step()
        found.append((engine.stats.tokens - before) / (streams * part_s))
    return found


def main() -> int:
    """Command line."""
    parser = command_line(__file__, __doc__)
    parser.add_argument("--model", choices=sorted(CONFIGS), required=True, help="dimensions of which model")
    parser.add_argument("--chunk-ms", type=int, default=160, help="audio of one model call")
    parser.add_argument(
        "--device", default="cuda" if torch.cuda.is_available() else "cpu", help="PyTorch device"
    )
    parser.add_argument("--dtype", choices=sorted(DTYPES), default="bfloat16", help="type of the weights")
    parser.add_argument("--to", type=Path, help="folder to write; left alone when it is there")
    parser.add_argument("--check-s", type=int, default=0, help="seconds of speech to count tokens over")
    parser.add_argument("--streams", type=int, default=_CPU_STREAMS, help="streams of --check-s")
    parser.add_argument("--threads", type=int, default=0, help="CPU threads of PyTorch; 0 lets it choose")
    given = parser.parse_args()
    if given.threads:
        torch.set_num_threads(given.threads)
    device, dtype = torch.device(given.device), DTYPES[given.dtype]
    started = time.monotonic()
    told: dict[str, Any] = {"model": given.model, "chunk_ms": given.chunk_ms, "dtype": given.dtype}
    if given.to is not None:
        told["calibrated"] = round(export(given.model, given.chunk_ms, dtype, device, given.to), 2)
        told["export_s"] = round(time.monotonic() - started, 2)
    if given.check_s:
        loaded, told["calibrated"] = make(given.model, given.chunk_ms, dtype, device)
        found = rates(loaded, given.chunk_ms, given.streams, given.check_s)
        told["tokens_per_second"] = [round(rate, 2) for rate in found]
        told["streams"], told["check_s"] = given.streams, round(time.monotonic() - started, 1)
    print(json.dumps(told), flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
