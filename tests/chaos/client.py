"""Clients under chaos: they feed a clip, resume what breaks, and write down every message as it came."""

from __future__ import annotations

import asyncio
import time
import wave
from dataclasses import dataclass, field
from pathlib import Path
from random import Random
from typing import Any

import orjson

import parakeet
from common.messages import Audio, Encoding
from common.options import StreamOptions
from parakeet.client import ClientError, ClientTimeouts, Stream
from parakeet.client.channel import Channel, open_channel

RATE = 16_000
# Groups of lanes load a model and then start their lanes, on a core that others have too. Clients wait for
# that; what a stream is promised is looked at all the same.
TIMEOUTS = ClientTimeouts(connect_s=5.0, silence_s=5.0, final_s=120.0, resume_s=120.0, send_s=120.0)
# A cluster whose last ingress was just killed takes nobody; the client tries again, nothing being lost.
_CONNECT_PATIENCE_S = 120.0
# A stream that takes so much longer than its audio has been forgotten by somebody.
_PATIENCE_S = 180.0


@dataclass(frozen=True, slots=True)
class Clip:
    """Audio, and what is done with it. Streams of one clip must all have one result."""

    number: int
    pcm: bytes
    options: StreamOptions

    @property
    def num_samples(self) -> int:
        return len(self.pcm) // 2


def make_clips(count: int, seed: int = 0) -> list[Clip]:
    """Recordings strung together with pauses, 6 to 25 s each."""
    folder = Path(parakeet.__file__).parent / "recordings"
    recordings = []
    for path in sorted(folder.glob("*.wav")):
        with wave.open(str(path)) as recording:
            recordings.append(recording.readframes(recording.getnframes()))
    random = Random(seed)
    clips = []
    for number in range(count):
        parts: list[bytes] = []
        wanted = random.uniform(6, 25) * RATE * 2
        while sum(map(len, parts)) < wanted:
            parts += [random.choice(recordings), bytes(2 * random.randrange(RATE // 10, 2 * RATE))]
        options = StreamOptions(words=bool(number % 3 == 0), auto_finalize=bool(number % 2))
        clips.append(Clip(number, b"".join(parts), options))
    return clips


@dataclass(slots=True)
class Contact:
    """One connection of a stream: what the client said it had, and what it was sent (with times).

    last_seq: that of the resumption; None on the first connection, and where the server said no at once.
    """

    url: str
    last_seq: int | None = None
    resumed_at: int | None = None
    received: list[tuple[float, dict[str, Any]]] = field(default_factory=list)


@dataclass(slots=True)
class StreamLog:
    """All that happened to one stream, for the invariants to be checked."""

    clip: Clip
    stream_id: int = 0
    contacts: list[Contact] = field(default_factory=list)
    refusals: list[str] = field(default_factory=list)
    failure: str | None = None
    num_resumptions: int = 0
    began_at: float = 0.0
    ended_at: float = 0.0

    @property
    def results(self) -> list[dict[str, Any]]:
        """Results over all connections, as they came."""
        return [
            message
            for contact in self.contacts
            for _, message in contact.received
            if message["type"] == "result"
        ]


class RecordingChannel:
    """A channel that writes down what passes."""

    def __init__(self, channel: Channel, contact: Contact) -> None:
        self._channel = channel
        self._contact = contact

    async def send(self, message: bytes) -> None:
        said = orjson.loads(message)
        if said["type"] == "resume":
            self._contact.last_seq = said["last_seq"]
        await self._channel.send(message)

    async def send_audio(self, audio: Audio, of_frames: Encoding) -> None:
        await self._channel.send_audio(audio, of_frames)

    async def receive(self) -> bytes | str:
        message = await self._channel.receive()
        said = orjson.loads(message)
        if said["type"] == "resumed":
            self._contact.resumed_at = said["next_sample"]
        self._contact.received.append((time.monotonic(), said))
        return message

    async def close(self) -> None:
        await self._channel.close()


class ChaosStream(Stream):
    """A client's stream with its channels recorded."""

    log: StreamLog

    async def _open_channel(self, url: str) -> Channel:
        contact = Contact(url)
        channel = RecordingChannel(await open_channel(url, self._timeouts.connect_s), contact)
        self.log.contacts.append(contact)
        return channel


async def _open(log: StreamLog, urls: list[str]) -> ChaosStream:
    """A stream that the cluster has taken. Only refusals before any audio are tried again."""
    deadline = time.monotonic() + _CONNECT_PATIENCE_S
    while True:
        stream = ChaosStream(tuple(urls), log.clip.options, resume=True, window_s=60.0, timeouts=TIMEOUTS)
        stream.log = log
        try:
            await stream.open()
        except ClientError as error:
            log.refusals.append(str(error))
            log.contacts.clear()
            if time.monotonic() > deadline:
                raise
            await asyncio.sleep(0.2)
        else:
            return stream


async def run_stream(
    clip: Clip,
    urls: list[str],
    random: Random,
    speed: float,
    delay_s: float,
    log: StreamLog | None = None,
) -> StreamLog:
    """Feed a clip at `speed` times real time in messages of random sizes; return all that happened.

    log: may be looked at while the stream runs.
    """
    log = StreamLog(clip) if log is None else log
    await asyncio.sleep(delay_s)
    log.began_at = time.monotonic()
    try:
        stream = await _open(log, urls)
    except ClientError as error:
        log.failure = f"not taken: {error}"
        return log
    log.stream_id = stream.stream_id
    try:
        async with asyncio.timeout(_PATIENCE_S + clip.num_samples / RATE), stream:
            feeding = asyncio.create_task(_feed(stream, clip, random, speed))
            try:
                async for _ in stream.results():
                    pass
            finally:
                feeding.cancel()
                await asyncio.gather(feeding, return_exceptions=True)
    except (ClientError, TimeoutError) as error:
        log.failure = f"{type(error).__name__}: {error}"
    log.stream_id = stream.stream_id  # another one, where the first had never begun
    log.num_resumptions = stream.num_resumptions
    log.ended_at = time.monotonic()
    return log


async def _feed(stream: ChaosStream, clip: Clip, random: Random, speed: float) -> None:
    loop = asyncio.get_running_loop()
    started = loop.time()
    at = 0
    while at < len(clip.pcm):
        size = 2 * random.choice((160, 800, 1600, 2560, 2560, 5120, 16_000))
        await stream.send(clip.pcm[at : at + size], Encoding.PCM16)
        at += size
        due = started + at / 2 / RATE / speed
        if due > loop.time():
            await asyncio.sleep(due - loop.time())
    await stream.finish()
