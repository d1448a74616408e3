"""A stream's resume token: another after each resume, and nobody is locked out on the way."""

from __future__ import annotations

import asyncio
import base64
import json
import signal
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any, Self

import pytest

from common.entries import IngressId, StreamId
from common.options import StreamOptions
from common.redis.clients import AsyncRedis, RedisServers
from common.redis.keys import Keys
from common.streams.assignments import NewStream, StreamDirectory
from tests.ingress_process import IngressProcess
from tests.ports import HOST
from tests.stack import Stack
from tests.stream_client import noise
from tests.waiting import until

STREAM = StreamId(7)
A, B = IngressId("a"), IngressId("b")


class Client:
    """A connection that goes on with a stream, or begins one."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._reader = reader
        self._writer = writer

    @classmethod
    @asynccontextmanager
    async def open(cls, ingress: IngressProcess) -> AsyncIterator[tuple[Self, dict[str, Any]]]:
        """Connect; return the client and its `hello`."""
        client = cls(*await asyncio.open_connection(HOST, ingress.port))
        try:
            yield client, await client.receive()
        finally:
            client._writer.transport.abort()

    async def send(self, **message: Any) -> None:
        self._writer.write(json.dumps(message).encode() + b"\n")
        await self._writer.drain()

    async def receive(self, kind: str = "") -> dict[str, Any]:
        """The next message, or the next of a kind."""
        async with asyncio.timeout(90):
            while True:
                message: dict[str, Any] = json.loads(await self._reader.readline())
                if kind in ("", message["type"]):
                    return message

    async def resume(self, stream: int, token: str) -> dict[str, Any]:
        await self.send(type="resume", stream_id=stream, resume_token=token, last_seq=0, audio_ack_samples=0)
        return await self.receive()

    async def begin(self) -> None:
        """Begin a stream that can be resumed, and wait for its first result."""
        await self.send(type="config", resume=True)
        await self.send(type="audio", data=base64.b64encode(noise(1.0)).decode())
        await self.receive("result")


async def resumed(ingress: IngressProcess, stream: int, token: str, *, confirm: bool) -> str | None:
    """Resume a stream and leave again; return the new token, None where it was refused.

    confirm: send a message behind `resumed`.
    """
    async with Client.open(ingress) as (client, _):
        answer = await client.resume(stream, token)
        if answer["type"] == "error":
            assert answer["code"] == "resume_refused"
            assert "secret differs" in answer["message"]
            return None
        if confirm:
            await client.send(type="ping")
            await client.receive("pong")
        return str(answer["resume_token"])


async def test_each_resume_brings_a_token_and_the_old_one_ends_with_the_first_message(stack: Stack) -> None:
    stack.worker()
    ingress = stack.ingress()
    async with Client.open(ingress) as (client, hello):
        await client.begin()
    stream, first = hello["stream_id"], hello["resume_token"]
    second = await resumed(ingress, stream, first, confirm=False)
    third = await resumed(ingress, stream, first, confirm=False)
    assert second is not None
    assert third is not None
    assert len({first, second, third}) == 3
    assert await resumed(ingress, stream, second, confirm=False) is None, "nobody can have that one only"
    fourth = await resumed(ingress, stream, third, confirm=True)
    assert fourth is not None

    async def old_is_refused() -> bool:
        return await resumed(ingress, stream, third, confirm=False) is None

    await until(old_is_refused, what="the end of the old token")
    assert await resumed(ingress, stream, first, confirm=False) is None
    async with Client.open(ingress) as (client, _):
        assert (await client.resume(stream, fourth))["type"] == "resumed"
        await client.send(type="close")
        while not (await client.receive("result"))["is_final"]:
            pass
    await stack.empty()


async def test_the_token_of_a_stream_that_has_ended_is_another_too(stack: Stack) -> None:
    stack.worker()
    ingress = stack.ingress()
    async with Client.open(ingress) as (client, hello):
        await client.begin()
        await client.send(type="close")
        while not (await client.receive("result"))["is_final"]:
            pass
    stream, first = hello["stream_id"], hello["resume_token"]
    second = await resumed(ingress, stream, first, confirm=False)
    assert second not in (None, first)

    assert await resumed(ingress, stream, second or "", confirm=False) not in (None, second)


@pytest.mark.parametrize("shown", ["old", "new"])
async def test_an_ingress_that_dies_behind_resumed_locks_nobody_out(stack: Stack, shown: str) -> None:
    stack.worker()
    first, second = stack.ingress("i-1"), stack.ingress("i-2")
    async with Client.open(first) as (client, hello):
        await client.begin()
    stream, old = hello["stream_id"], hello["resume_token"]
    async with Client.open(first) as (client, _):
        answer = await client.resume(stream, old)
        assert answer["type"] == "resumed"
        first.send(signal.SIGKILL)
        first.wait()
        # The client has read the answer, or has not.
        token = old if shown == "old" else answer["resume_token"]
        async with Client.open(second) as (again, _):
            assert (await again.resume(stream, token))["type"] == "resumed"
            await again.send(type="close")
            while not (await again.receive("result"))["is_final"]:
                pass


@asynccontextmanager
async def directory(url: str) -> AsyncIterator[StreamDirectory]:
    """The directory of a Redis with one stream, whose token has the hash t0."""
    redis = AsyncRedis(RedisServers.parse((url,)))
    streams = StreamDirectory(redis, Keys())
    await streams.create(NewStream(STREAM, A, StreamOptions(), 16_000, "t0", 1, 60_000, 1000))
    try:
        yield streams
    finally:
        await redis.close()


async def tokens(streams: StreamDirectory) -> tuple[str, str]:
    """The hashes that are good: of the token, and of the one before."""
    record = await streams.read(STREAM)
    assert record is not None
    return record.token_hash, record.token_before


async def test_a_late_confirmation_takes_nobodys_token(redis_url: str) -> None:
    async with directory(redis_url) as streams:
        assert await streams.attach(STREAM, A, tokens=("wrong", "t1")) == -1
        assert await streams.attach(STREAM, A, tokens=("t0", "t1")) == 2
        # The answer is lost, and the client comes back with what it has; then the ingress before confirms.
        assert await streams.attach(STREAM, B, tokens=("t0", "t2")) == 3
        await streams.confirm(STREAM, "t1")
        assert await tokens(streams) == ("t2", "t0")
        for _ in range(2):
            await streams.confirm(STREAM, "t2")
            assert await tokens(streams) == ("t2", "")
        assert await streams.attach(STREAM, A, tokens=("t0", "t3")) == -1
        assert await streams.attach(STREAM, A, tokens=("t2", "t3")) == 4
        # One that adopts a stream shows no token, and changes none.
        assert await streams.attach(STREAM, A, expected=(A, 4)) == 5
        assert await tokens(streams) == ("t3", "t2")


async def test_a_repeated_attachment_changes_no_token(redis_url: str) -> None:
    """As after a reply that was lost: the command goes out once more."""
    async with directory(redis_url) as streams:
        for _ in range(2):
            assert await streams.attach(STREAM, A, tokens=("t0", "t1")) > 0
        assert await tokens(streams) == ("t1", "t0")
        await streams.confirm(StreamId(8), "t1")
        assert await streams.read(StreamId(8)) is None, "a confirmation makes no record"
