"""Short messages share entries within a bound; everything else is committed at once."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from typing import Any

from common.entries import StreamId
from common.errors import Unavailable
from common.messages import Audio
from common.redis.clients import AsyncRedis, RedisServers
from common.redis.keys import Keys
from common.streams.appender import Appender
from common.streams.audio_log import AudioLog
from tests.servers import raw_client
from tests.waiting import until

_20_MS = Audio(b"\1\0" * 320)
_1_S = Audio(b"\1\0" * 16_000)


@asynccontextmanager
async def appending(url: str, coalesce_ms: int) -> AsyncIterator[tuple[AudioLog, Appender, Any, bytes]]:
    """An audio log that runs, an appender to a stream that exists, and a client to look at it."""
    client = raw_client(url)
    keys = Keys(1)
    stream = keys.stream(StreamId(1))
    client.xgroup_create(stream.audio, "asr-0", "0", mkstream=True)
    client.pexpire(stream.audio, 60_000)
    redis = AsyncRedis(RedisServers.parse((url,)))
    log = AudioLog(redis, keys, 60_000, coalesce_ms=coalesce_ms)
    running = asyncio.create_task(log.run())

    def failed(error: Unavailable) -> None:
        raise AssertionError(error)

    try:
        yield log, log.open(stream, failed), client, stream.audio
    finally:
        running.cancel()
        with suppress(asyncio.CancelledError):
            await running
        await redis.close()
        client.close()


def samples(client: Any, key: bytes) -> list[int]:
    """Samples of each entry."""
    return [len(fields.get(b"p", b"")) // 2 for _, fields in client.xrange(key)]


async def test_two_short_messages_share_an_entry(redis_url: str) -> None:
    async with appending(redis_url, coalesce_ms=1000) as (_, appender, client, key):
        for _ in range(3):
            appender.append(_1_S)
            await asyncio.sleep(0)
            appender.append(_1_S)
            await until(lambda: appender.idle, what="the commit")
        assert samples(client, key) == [32_000] * 3
        assert [int(fields[b"o"]) for _, fields in client.xrange(key)] == [0, 32_000, 64_000]


async def test_a_short_message_that_stays_alone_waits_no_longer_than_the_bound(redis_url: str) -> None:
    async with appending(redis_url, coalesce_ms=300) as (_, appender, client, key):
        started = time.monotonic()
        appender.append(_20_MS)
        await until(lambda: samples(client, key) == [320], what="the commit")
        assert time.monotonic() - started >= 0.29


async def test_a_final_mark_a_long_message_and_a_shutdown_wait_for_nothing(redis_url: str) -> None:
    async with appending(redis_url, coalesce_ms=60_000) as (log, appender, client, key):
        appender.append(_20_MS)
        assert await log.flush(60.0)
        assert samples(client, key) == [320]
        appender.append(_20_MS)
        appender.append(Audio(b"", final=True))
        await until(lambda: samples(client, key) == [320, 320], what="the final entry")
        assert client.xrange(key)[-1][1][b"x"] == b"1"


async def test_without_coalescing_each_message_is_committed(redis_url: str) -> None:
    async with appending(redis_url, coalesce_ms=0) as (_, appender, client, key):
        for _ in range(3):
            appender.append(_20_MS)
            await until(lambda: appender.idle, what="the commit")
        assert samples(client, key) == [320] * 3
