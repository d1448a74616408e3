"""The ingress side of streams for tests of workers: appends audio, receives results as an ingress does.

What was published is kept as it came, beside what a client would have been sent.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import numpy as np
import orjson

from common.entries import (
    IngressId,
    Line,
    LineKind,
    StreamId,
    WorkerId,
    decode_error,
    decode_lines,
    decode_record,
)
from common.errors import NoWorker, Unavailable
from common.messages import Audio, Encoding, ErrorMessage, ServerMessage
from common.options import StreamOptions
from common.presence.leases import IngressPresence, IngressReport
from common.presence.status import read_status, unix_time_ms
from common.redis.clients import AsyncRedis, PipelinedCommands, RedisServers, subscription
from common.redis.keys import Keys, StreamKeys
from common.streams.admission import Admission
from common.streams.appender import Appender
from common.streams.assignments import NewStream, StreamDirectory
from common.streams.audio_log import AudioLog
from common.streams.result_reader import Position, catch_up
from gpu_worker.steps.null import NullEngine
from ingress.dialects.native import encode_server_message
from tests.waiting import WAIT_S, until

RESULTS = (LineKind.PARTIAL, LineKind.TURN, LineKind.FINAL)


def noise(seconds: float, seed: int = 0, rate: int = 16_000) -> bytes:
    """Audio as pcm16, different in every sample."""
    samples = np.random.default_rng(seed).integers(-3000, 3000, int(seconds * rate), dtype=np.int16)
    return samples.tobytes()


def expected_text(pcm: bytes, chunk_ms: int = 160) -> str:
    """What the null engine makes of 16 kHz audio when nothing is lost, repeated or moved."""
    engine = NullEngine(1, chunk_ms)
    stream = StreamId(1)
    engine.open(stream, StreamOptions())
    engine.feed(stream, np.multiply(np.frombuffer(pcm, "<i2"), np.float32(1 / 32768), dtype=np.float32))
    engine.finish(stream)
    text = ""
    while engine.has_work():
        for output in engine.step():
            text = output.text
    return text


class ClientStream:
    """One stream.

    sent: messages that a client would have, in order.   lines: all that was published.   worker: its owner.
    """

    def __init__(self, keys: StreamKeys) -> None:
        self.keys = keys
        self.stream = keys.stream
        self.sent: list[dict[str, Any]] = []
        self.lines: list[Line] = []
        self.worker: WorkerId | None = None
        self.epoch = 0
        self.seq = 0
        self.acked_samples = 0
        self.failure: Unavailable | None = None
        self.appender: Appender

    @property
    def ended(self) -> bool:
        return bool(self.sent) and (self.sent[-1]["type"] == "error" or self.sent[-1]["is_final"])

    @property
    def text(self) -> str:
        """Text of the last result."""
        results = [message for message in self.sent if message["type"] == "result"]
        return str(results[-1]["text"]) if results else ""

    @property
    def position(self) -> Position:
        return Position(self.keys, self.epoch, self.seq)

    def failed(self, error: Unavailable) -> None:
        self.failure = error

    def append(self, pcm: bytes, *, final: bool = False, encoding: Encoding = Encoding.PCM16) -> None:
        self.appender.append(Audio(pcm, encoding, final))

    def take(self, line: Line) -> bool:
        """Take a line as an ingress does; False when something before it is missing."""
        if line.epoch < self.epoch:
            return True
        if line.kind is LineKind.OWNER:
            self.epoch = line.epoch
            self.worker = WorkerId(line.body.decode())
            self.appender.set_owner(self.worker)
            return line.seq <= self.seq
        if line.kind is LineKind.ACK:
            self.acked_samples = max(self.acked_samples, line.acked)
            return True
        if line.seq <= self.seq:
            return True
        if line.seq > self.seq + 1 and line.kind is not LineKind.ERROR:
            return False
        self.epoch = line.epoch
        self.seq = line.seq
        message: ServerMessage
        if line.kind is LineKind.ERROR:
            error = decode_error(line)
            message = ErrorMessage(error.code.value, error.message, self.stream)
        else:
            message = decode_record(line, self.text)
        self.sent.append(orjson.loads(encode_server_message(message)))
        return True


class IngressSide:
    """Appends and receives for any number of streams."""

    def __init__(
        self,
        redis: AsyncRedis,
        ingress: str,
        shards: int,
        stream_ttl_ms: int,
        heartbeat_ms: int,
        give_up_ms: int,
    ) -> None:
        self.redis = redis
        self.keys = Keys(shards)
        self.ingress = IngressId(ingress)
        self.admission = Admission(redis.cluster, self.keys)
        self.directory = StreamDirectory(redis, self.keys)
        self.log = AudioLog(redis, self.keys, give_up_ms=give_up_ms, keep_ms=60_000)
        self.presence = IngressPresence(PipelinedCommands(redis, 0), self.keys, self.ingress, heartbeat_ms)
        self.streams: dict[StreamId, ClientStream] = {}
        self.stream_ttl_ms = stream_ttl_ms
        self.subscriptions = 0

    async def open(
        self,
        *,
        sample_rate: int = 16_000,
        options: StreamOptions | None = None,
        grace_ms: int = 0,
        max_num_streams: int = 100,
    ) -> ClientStream:
        """Admit and create a stream; waits for a worker to be there."""
        deadline = time.monotonic() + WAIT_S
        while True:
            try:
                stream = await self.admission.admit(max_num_streams, 60_000)
                break
            except NoWorker:
                assert time.monotonic() < deadline
                await asyncio.sleep(0.02)
        new = NewStream(
            stream,
            self.ingress,
            options or StreamOptions(),
            sample_rate,
            "",
            unix_time_ms(),
            self.stream_ttl_ms,
            grace_ms,
        )
        client_stream = ClientStream(await self.directory.create(new))
        client_stream.appender = self.log.open(
            client_stream.keys,
            client_stream.failed,
            origin=lambda: self.directory.creation_anew(new, client_stream.epoch),
        )
        self.streams[stream] = client_stream
        return client_stream

    async def feed(self, stream: ClientStream, pcm: bytes, message_bytes: int = 5120) -> None:
        """Append all of it and the end, in messages, as fast as Redis takes them."""
        for at in range(0, len(pcm), message_bytes):
            await stream.appender.room(256 * 1024)
            stream.append(pcm[at : at + message_bytes])
            await asyncio.sleep(0)
        stream.append(b"", final=True)

    async def ended(self, *streams: ClientStream, timeout_s: float = WAIT_S) -> None:
        """Wait until each stream has its final result or error."""
        await until(lambda: all(stream.ended for stream in streams), timeout_s, "the end of the streams")

    async def catch_up(self) -> None:
        """Read what was missed of every stream."""
        streams = [stream for stream in self.streams.values() if not stream.ended]
        while streams:
            found = await catch_up(self.redis, [stream.position for stream in streams])
            for stream, missed in zip(streams, found, strict=True):
                assert missed.error is None
                for line in missed.lines:
                    assert stream.take(line), "results are missing in Redis"
            streams = [stream for stream, missed in zip(streams, found, strict=True) if missed.more]

    async def status(self) -> dict[str, Any]:
        return await read_status(self.redis, self.keys)

    async def beat(self) -> None:
        await self.presence.beat(IngressReport(unix_time_ms(), len(self.streams)))

    async def _receive(self, server: int) -> None:
        payloads: asyncio.Queue[bytes | None] = asyncio.Queue()
        channel = self.keys.channel(self.ingress)
        published = subscription(self.redis.servers, server, channel, payloads.put_nowait)
        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(published.run())
            tasks.create_task(self._take_all(payloads))

    async def _take_all(self, payloads: asyncio.Queue[bytes | None]) -> None:
        while True:
            payload = await payloads.get()
            if payload is None:
                self.subscriptions += 1
                await self.catch_up()
                continue
            for line in decode_lines(payload):
                stream = self.streams.get(line.stream)
                if stream is None:
                    continue
                stream.lines.append(line)
                if not stream.take(line):
                    await self.catch_up()

    async def _look_after(self) -> None:
        """Heartbeats, and a look for results whose publication was lost."""
        while True:
            await self.beat()
            await self.directory.renew([stream.keys for stream in self.streams.values()], self.stream_ttl_ms)
            await asyncio.sleep(0.5)
            await self.catch_up()


@asynccontextmanager
async def ingress_side(
    *urls: str,
    ingress: str = "i-test",
    shards: int = 1,
    stream_ttl_ms: int = 60_000,
    heartbeat_ms: int = 15_000,
    give_up_ms: int = 60_000,
) -> AsyncIterator[IngressSide]:
    """A running ingress side.

    heartbeat_ms: four of these without a beat, and it counts as gone; it beats twice a second while the test
        does not hold up its event loop. give_up_ms: how long an append is tried.
    """
    servers = RedisServers.parse(urls, shards, 30_000)
    redis = AsyncRedis(servers)
    side = IngressSide(redis, ingress, servers.shards, stream_ttl_ms, heartbeat_ms, give_up_ms)
    tasks = [asyncio.create_task(side.log.run()), asyncio.create_task(side._look_after())]
    tasks += [asyncio.create_task(side._receive(server)) for server in range(servers.num_servers)]
    try:
        await until(lambda: side.subscriptions >= servers.num_servers, what="the subscription")
        yield side
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        await redis.close()


def num_unacked(client: Any, stream: ClientStream) -> int:
    """Entries of audio that the first owner of a stream has read and not acknowledged."""
    return int(client.xpending(stream.keys.audio, "asr-1")["pending"])
