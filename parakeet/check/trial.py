"""Measures a server with the bundled recordings: its text, its latency, and its speed."""

from __future__ import annotations

import asyncio
import time
from bisect import bisect_left
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

from common.options import StreamOptions
from parakeet.audio.source import Recording, read_recording
from parakeet.check.clips import Clip
from parakeet.check.word_errors import word_errors
from parakeet.client import Stream, connect

MESSAGE_MS: Final = 80
"""An encoder frame, so that a chunk ends with a message."""
_FAST_MESSAGE_S: Final = 1.0


@dataclass(frozen=True, slots=True)
class Reading:
    """The results of one recording, sent in real time.

    errors, words: number of word errors, and of spoken words.
    latency_s: latency of each result, from the sending of the last sample that it covers.
    final_s: time from the end of the audio to the final result.
    """

    clip: Clip
    seconds: float
    text: str
    errors: int
    words: int
    latency_s: tuple[float, ...]
    final_s: float


async def read_all(url: str, clips: Sequence[Clip]) -> list[Reading]:
    """Transcribe recordings, all at once. Raises ClientError."""
    recordings = [read_recording(clip.path) for clip in clips]
    return await asyncio.gather(
        *(_read(url, clip, recording) for clip, recording in zip(clips, recordings, strict=True))
    )


async def real_time_factor(url: str, clips: Sequence[Clip]) -> float:
    """Send all recordings one after the other, each as fast as the server takes it.

    Returns the seconds that one second of audio takes. Raises ClientError.
    """
    spent_s = audio_s = 0.0
    for clip in clips:
        recording = read_recording(clip.path)
        async with await _connected(url, recording) as stream:
            began = time.monotonic()
            size = 2 * int(_FAST_MESSAGE_S * recording.rate)
            for at in range(0, len(recording.pcm), size):
                await stream.send(recording.pcm[at : at + size])
            await stream.finish()
            await stream.final()
            spent_s += time.monotonic() - began
        audio_s += recording.seconds
    return spent_s / audio_s


async def _connected(url: str, recording: Recording) -> Stream:
    return await connect(url, options=StreamOptions(sample_rate=recording.rate))


async def _read(url: str, clip: Clip, recording: Recording) -> Reading:
    samples: list[int] = []  # sent so far, with each message
    times: list[float] = []
    size = 2 * recording.rate * MESSAGE_MS // 1000
    async with await _connected(url, recording) as stream:

        async def send() -> None:
            began = time.monotonic()
            for at in range(0, len(recording.pcm), size):
                part = recording.pcm[at : at + size]
                end = (at + len(part)) // 2
                # Its last sample is spoken by then.
                await asyncio.sleep(max(0.0, began + end / recording.rate - time.monotonic()))
                samples.append(end)
                times.append(time.monotonic())
                await stream.send(part)
            await stream.finish()

        sending = asyncio.create_task(send(), name="send")
        latency_s: list[float] = []
        try:
            async for result in stream.results():
                now = time.monotonic()
                at = bisect_left(samples, result.audio_ack_samples)
                if not result.is_final and at < len(times):
                    latency_s.append(now - times[at])
            await sending
        finally:
            sending.cancel()
    errors, words = word_errors(clip.text, result.text)
    return Reading(
        clip, recording.seconds, result.text, errors, words, tuple(latency_s), time.monotonic() - times[-1]
    )
