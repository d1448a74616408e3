"""Time from the last sample of speech to its final text, for each protocol of the WebSocket port.

    python -m benchmarks.final_latency --rounds 15

Starts a server with the bundled model. In each round every way is measured once, on a connection of its own:
it sends a recording in real time, in blocks of 80 ms, and requests the text with the last block. The latency
is the time from then to the final of all audio. A way is a protocol and its request.
"""

from __future__ import annotations

import base64
import json
import shlex
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import soxr
from websockets.sync.client import ClientConnection, connect

from benchmarks.command_line import command_line
from parakeet.audio.source import open_source
from parakeet.bench.plan import Target
from parakeet.bench.server.fresh_server import fresh_server

BLOCK_S = 0.08
_TIMEOUT_S = 20.0
_RECORDING = Path(__file__).parent.parent / "parakeet" / "recordings" / "goforward.wav"
_SERVE = "serve --port 0 --status-port 0 --device cpu --model-size tiny --max-num-streams 8"


def _json(**fields: Any) -> str:
    return json.dumps(fields)


@dataclass(frozen=True, slots=True)
class Way:
    """A way to request the text.

    path: path of the WebSocket. rate: Hz. begin, ask: messages before and after the audio.
    pack: audio as a frame.   final_of: the text of a message that is final, None of any other.
    ends: whether a message is the last of the answer.
    """

    name: str
    path: str
    rate: int
    begin: tuple[str, ...]
    ask: str
    pack: Callable[[bytes], str | bytes]
    final_of: Callable[[dict[str, Any]], str | None]
    ends: Callable[[dict[str, Any]], bool]


def _result(message: dict[str, Any]) -> str | None:
    is_answer = message["type"] == "result" and (message["is_final"] or message.get("from_finalize"))
    return str(message["text"]) if is_answer else None


def _segment(message: dict[str, Any]) -> str | None:
    if message["type"] != "Results" or not message["is_final"]:
        return None
    return str(message["channel"]["alternatives"][0]["transcript"])


def _item(message: dict[str, Any]) -> str | None:
    kind = "conversation.item.input_audio_transcription.completed"
    return str(message["transcript"]) if message["type"] == kind else None


def _append(block: bytes) -> str:
    return _json(type="input_audio_buffer.append", audio=base64.b64encode(block).decode())


_LISTEN = "/v1/listen?encoding=linear16&sample_rate=16000&interim_results=true"
_REALTIME = "/v1/realtime?intent=transcription"
_NO_TURNS = _json(
    type="session.update",
    session={"type": "transcription", "audio": {"input": {"turn_detection": None}}},
)
NATIVE = {"finalize": "native, finalize", "close": "native, close"}


def _ways() -> Iterator[Way]:
    for kind, name in NATIVE.items():
        ask = _json(type=kind)
        yield Way(name, "/", 16_000, (), ask, bytes, _result, lambda message: _result(message) is not None)
    ask = _json(type="Finalize")
    ends = lambda message: message.get("from_finalize", False)  # noqa: E731
    yield Way("Deepgram, Finalize", _LISTEN, 16_000, (), ask, bytes, _segment, ends)
    ask = _json(type="CloseStream")
    yield Way(
        *("Deepgram, CloseStream", _LISTEN, 16_000, (), ask, bytes, _segment),
        lambda message: message["type"] == "Metadata",
    )
    ask = _json(type="input_audio_buffer.commit")
    yield Way(
        *("OpenAI, commit", _REALTIME, 24_000, (_NO_TURNS,), ask, _append, _item),
        lambda message: _item(message) is not None,
    )


def blocks(rate: int) -> Iterator[bytes]:
    """Yield the recording at a rate, in blocks."""
    source = open_source(_RECORDING)
    samples = np.frombuffer(b"".join(source.blocks()), "<i2")
    if rate != source.rate:
        samples = soxr.resample(samples, source.rate, rate)
    pcm, size = samples.astype("<i2").tobytes(), 2 * round(rate * BLOCK_S)
    for at in range(0, len(pcm), size):
        yield pcm[at : at + size]


def final_after_s(way: Way, port: int) -> tuple[float, str]:
    """Return the seconds from the last sample to the final, and its text."""
    with connect(f"ws://127.0.0.1:{port}{way.path}", compression=None) as connection:
        for message in way.begin:
            connection.send(message)
        due = time.monotonic()
        for block in blocks(way.rate):
            due += BLOCK_S
            time.sleep(max(0.0, due - time.monotonic()))  # a block is there when its last sample is spoken
            connection.send(way.pack(block))
        started = time.monotonic()
        connection.send(way.ask)
        return _final(connection, way, started)


def _final(connection: ClientConnection, way: Way, started: float) -> tuple[float, str]:
    """Read up to the end of the answer; the time is that of the last final text."""
    took_s, texts = 0.0, []
    while True:
        message = json.loads(connection.recv(timeout=_TIMEOUT_S))
        text = way.final_of(message)
        if text is not None:
            took_s = time.monotonic() - started
            texts.append(text)
        if way.ends(message):
            return took_s, " ".join(filter(None, texts))


def main(argv: Sequence[str] | None = None) -> None:
    """Print a row for each way."""
    parser = command_line(__file__, __doc__)
    parser.add_argument("--rounds", type=int, default=15, help="recordings sent each way")
    parser.add_argument("--port", type=int, default=18_765, help="WebSocket port of the server")
    given = parser.parse_args(argv)
    serve = shlex.join([sys.executable, "-m", "parakeet.cli", *_SERVE.split(), "--ws-port", str(given.port)])
    ways = list(_ways())
    taken: dict[str, list[float]] = {way.name: [] for way in ways}
    texts: dict[str, set[str]] = {way.name: set() for way in ways}
    with fresh_server(serve, (Target.parse(f"ws://127.0.0.1:{given.port}"),), 120.0):
        for number in range(-1, given.rounds):  # the first warms up
            for way in ways:
                seconds, text = final_after_s(way, given.port)
                texts[way.name].add(text)
                if number >= 0:
                    taken[way.name].append(1e3 * seconds)
    print("| way | p50 ms | p90 ms | largest ms | over native p50 | text |\n|---|---|---|---|---|---|")
    for name, times in taken.items():
        p50, p90 = np.percentile(times, (50, 90))
        like = NATIVE["close" if name.endswith(("close", "CloseStream")) else "finalize"]
        over = p50 - np.percentile(taken[like], 50)
        print(
            f"| {name} | {p50:.1f} | {p90:.1f} | {max(times):.1f} | {over:+.1f} | {', '.join(texts[name])} |"
        )


if __name__ == "__main__":
    main()
