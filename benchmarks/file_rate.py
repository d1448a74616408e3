"""The speed of transcribing recordings, in times real time: uploads to a server of its own.

    python -m benchmarks.file_rate --model large --chunk-ms 160,1120 --must-pass
    python -m benchmarks.file_rate --model mini --device cpu --minutes 0.5 --chunk-ms 160,1120

A model is `tiny`, which is bundled, or one of random weights at real dimensions, written to `--models` once.
A file is the bundled recordings over and over, sent as a WAV to `/v1/audio/transcriptions`; the clock runs
from the request to the end of its answer, decoding and Redis included.  PyAV is not needed.  A line of JSON
for each number of files, and one with all of them for each length of chunk, for which a server is started
anew.
"""

from __future__ import annotations

import argparse
import http.client
import io
import json
import secrets
import shlex
import subprocess
import sys
import tempfile
import time
import wave
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.command_line import command_line
from benchmarks.corpora.speech import speech
from benchmarks.trials.random_model import CONFIGS
from parakeet.bench.plan import Target
from parakeet.bench.report import commit
from parakeet.bench.server.fresh_server import fresh_server

RATE = 16_000
_TINY = "tiny"
_EXPORT_TIMEOUT_S = 300.0
_START_TIMEOUT_S = 180.0
# Wanted speed of one file on a GPU, in times real time, by the chunk's length.
_WANTED = {160: 35.0, 1120: 50.0}


def recording(seconds: float) -> bytes:
    """Return a WAV of speech of this length."""
    samples = np.round(32_767 * speech(0, round(seconds * RATE))).astype("<i2")
    file = io.BytesIO()
    with wave.open(file, "wb") as written:
        written.setnchannels(1)
        written.setsampwidth(2)
        written.setframerate(RATE)
        written.writeframes(samples.tobytes())
    return file.getvalue()


def upload(port: int, wav: bytes, timeout_s: float) -> tuple[float, int]:
    """Upload a WAV; return the seconds until the answer, and the number of characters of its text.

    Raises RuntimeError on a refusal.
    """
    boundary = secrets.token_hex(16)
    part = f"--{boundary}\r\nContent-Disposition: form-data; name="
    body = f'{part}"model"\r\n\r\nparakeet\r\n{part}"file"; filename="speech.wav"\r\n\r\n'.encode()
    body += wav + f"\r\n--{boundary}--\r\n".encode()
    headers = {"Content-Type": f"multipart/form-data; boundary={boundary}"}
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=timeout_s)
    try:
        started = time.monotonic()
        connection.request("POST", "/v1/audio/transcriptions", body, headers)
        response = connection.getresponse()
        answer = response.read()
        took_s = time.monotonic() - started
    finally:
        connection.close()
    if response.status != http.client.OK:
        raise RuntimeError(f"the upload was refused with {response.status}: {answer[:500]!r}")
    return took_s, len(json.loads(answer)["text"])


def rates(port: int, files: int, seconds: float, timeout_s: float) -> dict[str, Any]:
    """Upload a number of files at once; return the row of their rates."""
    wav = recording(seconds)
    started = time.monotonic()
    with ThreadPoolExecutor(files) as pool:
        found = list(pool.map(lambda _: upload(port, wav, timeout_s), range(files)))
    took_s = time.monotonic() - started
    return {
        "files": files,
        "seconds_each": seconds,
        "times_real_time_each": round(seconds / max(took for took, _ in found), 1),
        "times_real_time_together": round(files * seconds / took_s, 1),
        "characters": min(characters for _, characters in found),
    }


def _model(given: argparse.Namespace) -> list[str]:
    """Return the flags of `serve` for the model, which is written if it does not exist."""
    if given.model == _TINY:
        return ["--model-size", _TINY]
    # One model for all lengths of chunk: its token rate hardly depends on them.
    chunk_ms = given.chunk_ms[0]
    folder: Path = given.models / f"{given.model}-{chunk_ms}"
    if not folder.is_dir():
        command = [sys.executable, "-m", "benchmarks.export_random", "--model", given.model]
        command += ["--chunk-ms", str(chunk_ms), "--to", str(folder)]
        if given.device != "auto":
            command += ["--device", given.device]
        subprocess.run(command, check=True, timeout=_EXPORT_TIMEOUT_S)
    return ["--model", str(folder), "--eou-reset", "on"]


def _measured(given: argparse.Namespace, model: Sequence[str], chunk_ms: int) -> dict[str, Any]:
    """Start a server with chunks of this length and upload files; return the row."""
    serve = [
        *(sys.executable, "-m", "parakeet.cli", "serve", "--port", "0", "--ws-port", str(given.port)),
        *("--status-port", "0", "--device", given.device, "--chunk-ms", str(chunk_ms)),
        *("--num-workers", "1", "--max-num-streams", str(2 * max(given.files)), "--log-level", "warning"),
        *model,
    ]
    told: list[dict[str, Any]] = []
    target = Target.parse(f"ws://127.0.0.1:{given.port}")
    started = time.monotonic()
    with fresh_server(shlex.join(serve), (target,), _START_TIMEOUT_S):
        start_s = time.monotonic() - started
        upload(given.port, recording(5.0), given.timeout_s)  # the first warms up
        for files in given.files:
            told.append(rates(given.port, files, 60 * given.minutes, given.timeout_s))
            print(json.dumps(told[-1]), flush=True)
    row = {"row": f"files-{given.model}-{chunk_ms}", "device": given.device, "commit": commit()}
    return {**row, "start_s": round(start_s, 1), "wanted": _WANTED.get(chunk_ms), "files": told}


def _passed(row: dict[str, Any]) -> bool:
    """Whether one file alone was as fast as wanted."""
    alone = (trial["times_real_time_each"] for trial in row["files"] if trial["files"] == 1)
    return all(rate >= (row["wanted"] or 0.0) for rate in alone)


def _numbers(text: str) -> list[int]:
    return [int(part) for part in text.split(",")]


def main(argv: Sequence[str] | None = None) -> int:
    """Command line."""
    parser = command_line(__file__, __doc__)
    parser.add_argument(
        "--model",
        choices=(_TINY, *sorted(CONFIGS)),
        default="large",
        help="`tiny`, or dimensions of a model with random weights",
    )
    parser.add_argument(
        "--models",
        type=Path,
        default=Path(tempfile.gettempdir()) / "random-models",
        help="folder for models with random weights",
    )
    parser.add_argument("--chunk-ms", type=_numbers, default=[160], help="lengths of a chunk, by commas")
    parser.add_argument("--device", default="auto", help="PyTorch device")
    parser.add_argument("--minutes", type=float, default=3.0, help="length of a file")
    parser.add_argument(
        "--files", type=_numbers, default=[1, 4], help="numbers of files at once, with commas between them"
    )
    parser.add_argument("--port", type=int, default=9_850, help="WebSocket port of the server")
    parser.add_argument("--timeout-s", type=float, default=300.0, help="longest wait for an answer")
    parser.add_argument("--must-pass", action="store_true", help="exit with status 1 if a file is too slow")
    given = parser.parse_args(argv)
    model = _model(given)
    passed = True
    for chunk_ms in given.chunk_ms:
        row = _measured(given, model, chunk_ms)
        passed &= _passed(row)
        print(json.dumps(row), flush=True)
    return 1 if given.must_pass and not passed else 0


if __name__ == "__main__":
    sys.exit(main())
