"""Honest streams: what they are told, and how late."""

from __future__ import annotations

import asyncio
import time
from bisect import bisect_left
from collections.abc import Sequence
from dataclasses import dataclass, field
from random import Random

from common.options import StreamOptions
from parakeet.client import ClientError, connect
from tests.chaos.client import TIMEOUTS, Clip

RATE = 16_000
_MESSAGE_MS = 80
_CHUNK_S = 0.16


@dataclass(slots=True)
class Heard:
    """What honest streams were told.

    texts: by the clip's number, each text once.
    latency_s: of each result, from the sending of the last sample that it covers.
    final_s: of each final, from the end of the audio.
    failures: of streams that did not end well.
    """

    num_streams: int = 0
    texts: dict[int, set[str]] = field(default_factory=dict)
    latency_s: list[float] = field(default_factory=list)
    final_s: list[float] = field(default_factory=list)
    failures: list[str] = field(default_factory=list)


async def listen(
    urls: Sequence[str],
    key: str,
    clips: Sequence[Clip],
    num_streams: int,
    seconds: float,
    heard: Heard | None = None,
) -> Heard:
    """Have so many streams at once, each one clip after the other, until the time is over.

    Where in a chunk's time each clip begins is drawn, and the same in every run: so chunks of several streams
    come together as often without an attack as beside one, however long it takes there to open a stream.

    heard: where to note what is heard, for somebody who looks on.
    """
    heard, end = heard or Heard(), time.monotonic() + seconds

    async def client(number: int) -> None:
        turn = number
        dice = Random(number)
        while time.monotonic() < end:
            clip = clips[turn % len(clips)]
            try:
                await _stream(urls[number % len(urls)], key, clip, dice.random() * _CHUNK_S, heard)
            except ClientError as error:
                heard.failures.append(f"stream {number}: {error}")
                await asyncio.sleep(0.5)
            turn += 1

    async with asyncio.TaskGroup() as tasks:
        for number in range(num_streams):
            tasks.create_task(client(number), name=f"honest-{number}")
    return heard


async def _stream(url: str, key: str, clip: Clip, phase_s: float, heard: Heard) -> None:
    """Have one stream, whose audio begins `phase_s` behind a multiple of a chunk's time."""
    ends: list[int] = []  # samples sent with each message and before it
    times: list[float] = []
    size = 2 * RATE * _MESSAGE_MS // 1000
    stream = await connect(url, options=clip.options, timeouts=TIMEOUTS, api_key=key, resume=False)
    async with stream:

        async def send() -> None:
            began = time.monotonic()
            began += (phase_s - began) % _CHUNK_S
            for at in range(0, len(clip.pcm), size):
                part = clip.pcm[at : at + size]
                ends.append((at + len(part)) // 2)
                # Its last sample is spoken by then.
                await asyncio.sleep(max(0.0, began + ends[-1] / RATE - time.monotonic()))
                times.append(time.monotonic())
                await stream.send(part)
            await stream.finish()

        sending = asyncio.create_task(send(), name="send")
        try:
            async for result in stream.results():
                now = time.monotonic()
                if result.is_final:
                    heard.final_s.append(now - times[-1])
                else:
                    at = bisect_left(ends, result.audio_ack_samples)
                    heard.latency_s.append(now - times[min(at, len(times) - 1)])
            await sending
        finally:
            sending.cancel()
    heard.num_streams += 1
    heard.texts.setdefault(clip.number, set()).add(result.text)


def short_clips(clips: Sequence[Clip], seconds: float) -> list[Clip]:
    """The beginnings of clips, so that a stream of each ends within the time, with plain options."""
    size = 2 * int(seconds * RATE)
    return [Clip(clip.number, clip.pcm[:size], StreamOptions()) for clip in clips]
