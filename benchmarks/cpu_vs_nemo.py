"""This worker's model beside NeMo's on the same CPU, in one run: streaming step, load time, memory.

Runs in NeMo's environment, from the repository's root, on checkpoints that `make golden` made::

    .venv-nemo/bin/python -m benchmarks.cpu_vs_nemo step --model tests/golden/.cache/small/small.nemo
    .venv-nemo/bin/python -m benchmarks.cpu_vs_nemo load --model tests/golden/.cache/small/small.nemo

`step` brings one stream of real speech past its left context in both, copies its state to every row
of the batch, and times the following chunks in turn, ours and NeMo's: ours is a whole `engine.step()`
(mel, subsampling, encoder, decoding, results), NeMo's is `conformer_stream_step` on mel frames that
were computed before (subsampling, encoder, decoding), the step that its streaming examples run.  Both
run in one thread.  The ratio is of processor time, which other work on the machine hardly changes; the
clock's stands beside it.
`load` starts fresh processes; each imports what it needs, loads the checkpoint and reports the seconds
since its start and its resident memory, at the end and at its highest.
"""

from __future__ import annotations

import copy
import json
import os
import platform
import resource
import statistics
import subprocess
import sys
import time
import wave
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from benchmarks.command_line import command_line

RECORDING = Path(__file__).parents[1] / "parakeet" / "recordings" / "jfk.wav"
CACHED_MELS, DROPPED_FRAMES = 9, 2


def speech(seconds: float) -> NDArray[np.float32]:
    """Return the recording over and over, as float32 at 16 kHz."""
    with wave.open(str(RECORDING)) as file:
        samples = np.frombuffer(file.readframes(-1), dtype="<i2").astype(np.float32) / np.float32(32768)
    count = int(seconds * 16_000)
    return np.tile(samples, count // len(samples) + 1)[:count]


def processor() -> str:
    """Return the name of the CPU."""
    for line in Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines():
        if line.startswith("model name"):
            return line.partition(":")[2].strip()
    return platform.processor()


# ---------------------------------------------------------------------------------------------- step


class OwnStep:
    """This project's engine with `batch` copies of one stream past its left context."""

    def __init__(self, model: Path, context: tuple[int, int], batch: int, audio: NDArray[np.float32]) -> None:
        from common.entries import StreamId
        from common.options import StreamOptions
        from gpu_worker.engine.config import BatchSizes, EngineConfig
        from gpu_worker.model.loading.checkpoint import read_checkpoint
        from gpu_worker.steps.factory import make_model_engine

        self.chunk_samples = 1280 * (context[1] + 1)
        config = EngineConfig(
            num_slots=batch, context=context, batch_sizes=BatchSizes(batch, batch, batch),
            max_step_frames=context[1] + 1, turn_detection=False,
        )  # fmt: skip
        loaded = read_checkpoint(model)
        first = make_model_engine(loaded, config)
        first.open(StreamId(0), StreamOptions())
        first.feed(StreamId(0), audio)
        while first.has_work():
            first.step()
        self.position = first.samples_decoded(StreamId(0))
        state = first.snapshot(StreamId(0)).to_bytes()
        self.engine = make_model_engine(loaded, config)
        self.streams = [StreamId(number) for number in range(batch)]
        for stream in self.streams:
            self.engine.open(stream, StreamOptions(), state)

    def prepare(self, audio: NDArray[np.float32]) -> None:
        """Queue the next chunk of every stream."""
        chunk = audio[self.position : self.position + self.chunk_samples]
        self.position += self.chunk_samples
        for stream in self.streams:
            self.engine.feed(stream, chunk)

    def run(self) -> None:
        """One step."""
        before = self.engine.stats.pre_encode.units
        self.engine.step()
        if self.engine.stats.pre_encode.units != before + len(self.streams):
            raise AssertionError(f"a step did not take a chunk of each of {len(self.streams)} streams")


class NemoStep:
    """NeMo's cache-aware step with `batch` copies of one stream past its left context."""

    def __init__(self, model: Any, context: tuple[int, int], batch: int, audio: NDArray[np.float32]) -> None:
        self.model = model
        self.device = next(model.parameters()).device
        self.chunk_mels = 8 * (context[1] + 1)
        model.encoder.set_default_att_context_size(list(context))
        model.encoder.setup_streaming_params()
        self.mels = self._mels(audio)
        self.caches: Any = model.encoder.get_initial_cache_state(batch_size=1)
        self.hypotheses: list[Any] = []
        first = 1 + 8 * context[1]
        self.position = 0
        self._step(self.mels[:, :, :first], 0)
        self.position = first
        while self.position < 8 * (context[0] + context[1] + 1):
            self._advance()
        last_channel, last_time, length = self.caches
        self.caches = (
            last_channel.repeat(1, batch, 1, 1), last_time.repeat(1, batch, 1, 1), length.repeat(batch),
        )  # fmt: skip
        self.hypotheses = [copy.deepcopy(self.hypotheses[0]) for _ in range(batch)]
        self.mels = self.mels.repeat(batch, 1, 1)

    def _mels(self, audio: NDArray[np.float32]) -> Any:
        import torch

        with torch.inference_mode():
            signal = torch.from_numpy(audio)[None].to(self.device)
            length = torch.tensor([len(audio)], device=self.device)
            return self.model.preprocessor(input_signal=signal, length=length)[0]

    def _step(self, mels: Any, dropped: int) -> None:
        import torch

        with torch.inference_mode():
            results = self.model.conformer_stream_step(
                processed_signal=mels,
                processed_signal_length=torch.full((len(mels),), mels.shape[2], device=self.device),
                cache_last_channel=self.caches[0],
                cache_last_time=self.caches[1],
                cache_last_channel_len=self.caches[2],
                keep_all_outputs=True,
                previous_hypotheses=self.hypotheses or None,
                drop_extra_pre_encoded=dropped,
            )
        self.caches, self.hypotheses = results[2:5], results[5]

    def _advance(self) -> None:
        # After a first chunk of one mel frame, at chunks of 80 ms, fewer mel frames exist.
        cached = min(CACHED_MELS, self.position)
        mels = self.mels[:, :, self.position - cached : self.position + self.chunk_mels]
        self._step(mels, 1 + (cached - 1) // 8)
        self.position += self.chunk_mels

    def encode(self) -> None:
        """Run the encoder's part of a step, without keeping its changes of the caches."""
        import torch

        mels = self.mels[:, :, self.position - CACHED_MELS : self.position + self.chunk_mels]
        with torch.inference_mode():
            self.model.encoder.cache_aware_stream_step(
                processed_signal=mels,
                processed_signal_length=torch.full((len(mels),), mels.shape[2], device=self.device),
                cache_last_channel=self.caches[0],
                cache_last_time=self.caches[1],
                cache_last_channel_len=self.caches[2],
                keep_all_outputs=True,
                drop_extra_pre_encoded=DROPPED_FRAMES,
            )

    def prepare(self, audio: NDArray[np.float32]) -> None:
        """Do nothing: the mel frames are there already."""

    def run(self) -> None:
        """One step."""
        self._advance()


def timed(run: Callable[[], None]) -> tuple[float, float]:
    """Return the seconds of a call, by the clock and of the processor."""
    started, used = time.perf_counter(), time.thread_time()
    run()
    return time.perf_counter() - started, time.thread_time() - used


def compare_steps(model: Path, context: tuple[int, int], batches: list[int], rounds: int) -> dict[str, Any]:
    """Return times of both steps at each batch size, measured in turn."""
    import torch

    torch.set_num_threads(1)
    from nemo.collections.asr.models import ASRModel

    chunk_s = 0.08 * (context[1] + 1)
    warm_s = 0.08 * (context[0] + 2 * (context[1] + 1))
    warm, audio = speech(warm_s), speech(warm_s + (rounds + 4) * chunk_s)
    nemo = ASRModel.restore_from(str(model), map_location="cpu")
    nemo.eval()
    results = []
    for batch in batches:
        sides: dict[str, OwnStep | NemoStep] = {
            "own": OwnStep(model, context, batch, warm),
            "nemo": NemoStep(nemo, context, batch, audio),
        }
        times: dict[str, list[tuple[float, float]]] = {"own": [], "nemo": []}
        for number in range(rounds + 1):
            for name, side in sides.items():
                side.prepare(audio)
                taken = timed(side.run)
                if number > 0:
                    times[name].append(taken)
        own_wall, other_wall = (statistics.median(wall for wall, _ in times[name]) for name in times)
        own, other = (statistics.median(cpu for _, cpu in times[name]) for name in times)
        results.append(
            {
                "batch": batch,
                "own_cpu_ms": round(own * 1000, 2),
                "nemo_cpu_ms": round(other * 1000, 2),
                "ratio": round(other / own, 2),
                "own_wall_ms": round(own_wall * 1000, 2),
                "nemo_wall_ms": round(other_wall * 1000, 2),
                "wall_ratio": round(other_wall / own_wall, 2),
                "own_streams_a_core": round(batch * chunk_s / own, 1),
                "nemo_streams_a_core": round(batch * chunk_s / other, 1),
            }
        )
    return {"measure": "step", "context": list(context), "rounds": rounds, "threads": 1, "batches": results}


# ---------------------------------------------------------------------------------------------- load

_MEMORY = """
import json, resource, time
def report(started):
    pages = int(open("/proc/self/statm").read().split()[1])
    lines = [line.split() for line in open("/proc/self/smaps_rollup")]
    private = sum(int(line[1]) for line in lines if line[0].startswith("Private_"))
    print(json.dumps({"seconds": time.time() - started, "cpu_seconds": time.process_time(),
        "resident_mb": pages * resource.getpagesize() / 1e6,
        "private_mb": private * 1024 / 1e6,
        "peak_mb": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 / 1e6}))
"""
_OWN = """
import torch; torch.set_num_threads(1)
from pathlib import Path
from benchmarks.command_line import command_line
from gpu_worker.model.loading.checkpoint import load_model
from gpu_worker.model.loading.hub import Hub
from gpu_worker.model.model import StreamingModel
loaded = load_model(MODEL, hub=Hub(cache_dir=Path(CACHE)))
model = StreamingModel(loaded)
report(STARTED)
"""
_NEMO = """
import torch; torch.set_num_threads(1)
from nemo.collections.asr.models import ASRModel
model = ASRModel.restore_from(MODEL, map_location="cpu"); model.eval()
report(STARTED)
"""


def load_once(program: str, model: Path, cache: Path) -> dict[str, float]:
    """Run one program in a fresh process."""
    header = f"MODEL = {str(model)!r}; CACHE = {str(cache)!r}; STARTED = {time.time()!r}\n"
    environment = os.environ | {"NEMO_LOG_LEVEL": "ERROR", "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", header + _MEMORY + program],
        env=environment, capture_output=True, text=True, timeout=600, check=True,
    )  # fmt: skip
    values: dict[str, float] = json.loads(done.stdout.strip().splitlines()[-1])
    return {name: round(value, 2 if "seconds" in name else 0) for name, value in values.items()}


def compare_loads(model: Path, cache: Path, rounds: int) -> dict[str, Any]:
    """Load both, ours for the first time and again, NeMo's as often."""
    first = load_once(_OWN, model, cache)
    again, other = [], []
    for _ in range(rounds):
        again.append(load_once(_OWN, model, cache))
        other.append(load_once(_NEMO, model, cache))

    def median(values: list[dict[str, float]]) -> dict[str, float]:
        return {name: statistics.median(value[name] for value in values) for name in values[0]}

    own, nemo = median(again), median(other)
    return {
        "measure": "load",
        "rounds": rounds,
        "own_first": first,
        "own": own,
        "nemo": nemo,
        "ratio": {name: round(nemo[name] / own[name], 2) for name in own},
    }


def main() -> None:
    """Run one comparison and print, or append, its JSON."""
    parser = command_line(__file__, __doc__)
    parser.add_argument(
        "measure", choices=("step", "load"), help="the time of a streaming step, or that of loading a model"
    )
    parser.add_argument("--model", type=Path, required=True, help=".nemo file")
    parser.add_argument("--context", type=int, nargs=2, default=(70, 1), help="left and right context")
    parser.add_argument(
        "--batches", type=int, nargs="+", default=[1, 8, 32], help="streams of a step, one figure each"
    )
    parser.add_argument(
        "--rounds", type=int, default=7, help="rounds of each figure, of which the median counts"
    )
    parser.add_argument("--cache", type=Path, help="cache folder for our export; a new one unless given")
    parser.add_argument("--output", type=Path, help="JSON lines file to append to")
    arguments = parser.parse_args()
    os.environ.setdefault("NEMO_LOG_LEVEL", "ERROR")
    if arguments.measure == "step":
        context = (arguments.context[0], arguments.context[1])
        result = compare_steps(arguments.model, context, arguments.batches, arguments.rounds)
    else:
        import tempfile

        with tempfile.TemporaryDirectory() as folder:
            cache = arguments.cache or Path(folder) / "hub"
            result = compare_loads(arguments.model, cache, arguments.rounds)
    load = os.getloadavg()[0]
    result |= {
        "model": arguments.model.stem,
        "cpu": processor(),
        "cores": os.cpu_count(),
        "load_average": round(load, 1),
        "date": time.strftime("%Y-%m-%d", time.gmtime()),
        "peak_rss_mb": round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024),
    }
    line = json.dumps(result)
    print(line)
    if arguments.output:
        arguments.output.parent.mkdir(parents=True, exist_ok=True)
        with arguments.output.open("a", encoding="utf-8") as file:
            file.write(line + "\n")


if __name__ == "__main__":
    main()
