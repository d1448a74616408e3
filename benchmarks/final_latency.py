"""Time from the last sample of a recording to its final text, over each live protocol of a running server.

`python -m benchmarks.final_latency --url ws://127.0.0.1:8000` sends a recording at the speed of speech over
our own protocol, Deepgram's and OpenAI's, in turns, and asks for the end together with the last samples. What
is measured is the time until the final text came: of our own protocol the final result, of Deepgram's what
follows the last final, of OpenAI's the completed transcription.
"""

from __future__ import annotations

import argparse
import asyncio
import base64
import json
import statistics
import time
import wave
from collections.abc import Callable
from pathlib import Path
from typing import Any, Final

from websockets.asyncio.client import connect

RECORDING: Final = Path("parakeet/recordings/goforward.wav")
_BLOCK_S: Final = 0.1
_TIMEOUT_S: Final = 60.0


class Spoken:
    """One protocol.

    path: where it is spoken.   first: messages before the audio.   audio: writes a block of samples.
    end: asks for the end.   final: returns the text of a message that is the final, None for any other.
    """

    def __init__(
        self,
        path: str,
        audio: Callable[[bytes], str | bytes],
        end: dict[str, Any],
        final: Callable[[dict[str, Any]], str | None],
        first: dict[str, Any] | None = None,
    ) -> None:
        self.path = path
        self.audio = audio
        self.end = json.dumps(end)
        self.final = final
        self.first = None if first is None else json.dumps(first)


def protocols(rate: int) -> dict[str, Spoken]:
    """Return what is measured, for samples of this rate in Hz."""
    deepgram = f"/v1/listen?encoding=linear16&sample_rate={rate}&interim_results=true"
    session = {
        "type": "transcription",
        "audio": {"input": {"format": {"type": "audio/pcm", "rate": rate}, "turn_detection": None}},
    }
    return {
        "own": Spoken(
            "/",
            bytes,
            {"type": "close"},
            lambda message: message["text"] if message.get("is_final") else None,
            {"type": "config", "sample_rate": rate},
        ),
        "deepgram": Spoken(deepgram, bytes, {"type": "CloseStream"}, _Finals().text),
        "openai": Spoken(
            "/v1/realtime?intent=transcription",
            lambda block: json.dumps(
                {"type": "input_audio_buffer.append", "audio": base64.b64encode(block).decode()}
            ),
            {"type": "input_audio_buffer.commit"},
            lambda message: message["transcript"] if message["type"].endswith(".completed") else None,
            {"type": "session.update", "session": session},
        ),
    }


class _Finals:
    """The finals of Deepgram's protocol, joined; the last one is told by what follows it at once."""

    def __init__(self) -> None:
        self._texts: list[str] = []

    def text(self, message: dict[str, Any]) -> str | None:
        if message["type"] == "Results" and message["is_final"]:
            self._texts.append(message["channel"]["alternatives"][0]["transcript"])
        if message["type"] != "Metadata":
            return None
        text = " ".join(filter(None, self._texts))
        self._texts.clear()
        return text


async def measure(url: str, spoken: Spoken, pcm: bytes, rate: int) -> tuple[float, str]:
    """Send one recording; return the seconds from its last sample to the final text, and that text."""
    size = 2 * round(_BLOCK_S * rate)
    async with asyncio.timeout(_TIMEOUT_S), connect(url + spoken.path) as client:
        if spoken.first is not None:
            await client.send(spoken.first)
        begun = time.perf_counter()
        for number, at in enumerate(range(0, len(pcm), size), 1):
            block = pcm[at : at + size]
            # A block is sent once it would have been spoken.
            await asyncio.sleep(max(0.0, begun + number * _BLOCK_S - time.perf_counter()))
            await client.send(spoken.audio(block))
        sent = time.perf_counter()
        await client.send(spoken.end)
        async for message in client:
            text = spoken.final(json.loads(message))
            if text is not None:
                return time.perf_counter() - sent, text
    raise RuntimeError("the connection ended without a final text")


async def compare(url: str, rounds: int) -> dict[str, list[float]]:
    """Return the times of each protocol, in seconds. Raises RuntimeError where the texts differ."""
    with wave.open(str(RECORDING)) as recording:
        rate, pcm = recording.getframerate(), recording.readframes(recording.getnframes())
    times: dict[str, list[float]] = {}
    texts: set[str] = set()
    for number in range(rounds + 1):
        for name, spoken in protocols(rate).items():
            seconds, text = await measure(url, spoken, pcm, rate)
            texts.add(text)
            if number:  # the first round warms up
                times.setdefault(name, []).append(seconds)
    if len(texts) != 1:
        raise RuntimeError(f"the protocols say different things: {sorted(texts)}")
    return times


def main() -> None:
    """Measure, and print a table in Markdown."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--url", default="ws://127.0.0.1:8000")
    parser.add_argument("--rounds", type=int, default=20)
    arguments = parser.parse_args()
    times = asyncio.run(compare(arguments.url, arguments.rounds))
    own = statistics.median(times["own"])
    print("| protocol | median, ms | p90, ms | median over our own, ms |\n|---|---:|---:|---:|")
    for name, seconds in times.items():
        median, p90 = statistics.median(seconds), statistics.quantiles(seconds, n=10)[-1]
        print(f"| {name} | {1e3 * median:.1f} | {1e3 * p90:.1f} | {1e3 * (median - own):+.1f} |")


if __name__ == "__main__":
    main()
