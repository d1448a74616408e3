"""When audio is committed, and what becomes of it where Redis does not take it.

The rest of the log is tested against real servers.
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from contextlib import suppress
from typing import Any, cast

import pytest

from common.entries import StreamId
from common.errors import ErrorCode, Unavailable
from common.messages import Audio
from common.redis.clients import AsyncRedis, RedisServers
from common.redis.keys import Keys
from common.streams.audio_log import AudioLog
from tests.waiting import until


async def test_who_appends_anew_when_told_of_a_failure_is_told_again() -> None:
    """As an ingress does, to bring a stream whose audio could not be saved to its end."""
    redis = AsyncRedis(RedisServers.parse(("unix:///nowhere/redis.sock",)))
    keys = Keys()
    log = AudioLog(redis, keys, give_up_ms=100)
    running = asyncio.create_task(log.run())
    told: list[tuple[int, ErrorCode]] = []

    def append_to(number: int) -> None:
        def failed(error: Unavailable) -> None:
            told.append((number, error.code))
            append_to(number)

        log.open(keys.stream(StreamId(number)), failed).append(Audio(b"", final=True))

    append_to(1)
    append_to(2)
    await until(lambda: len(told) >= 6, what="three failures of both")
    assert told[:6] == 3 * [(1, ErrorCode.REDIS_UNAVAILABLE), (2, ErrorCode.REDIS_UNAVAILABLE)]
    assert not running.done()
    running.cancel()
    with suppress(asyncio.CancelledError):
        await running
    await redis.close()


class _Taking:
    """A Redis that takes everything at once: how many entries each commit brought (an AsyncRedis)."""

    def __init__(self) -> None:
        self.servers = RedisServers.parse(("unix:///nowhere/redis.sock",))
        self.commits: list[int] = []

    def pipelined(self, _server: int) -> _Taking:
        return self

    async def send(self, parts: Sequence[Any], count: int) -> list[bytes]:
        self.commits.append(count)
        return [b"1-1"] * count


async def test_commits_keep_their_distance_and_neither_a_lone_message_nor_an_end_waits(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("common.streams.audio_log._COMMIT_EVERY_S", 3600.0)  # never within this test
    redis = _Taking()
    keys = Keys()
    log = AudioLog(cast(AsyncRedis, redis), keys, give_up_ms=100)
    running = asyncio.create_task(log.run())
    first, second, last = (log.open(keys.stream(StreamId(n)), lambda _: None) for n in (1, 2, 3))

    first.append(Audio(b"aa"))
    await until(lambda: first.idle, what="the first message")
    first.append(Audio(b"bb"))
    second.append(Audio(b"cc"))
    await asyncio.sleep(0)
    await asyncio.sleep(0)
    assert redis.commits == [1]

    last.append(Audio(b"dd", final=True))
    await until(lambda: last.idle, what="the end of a stream")
    assert redis.commits == [1, 3]  # and takes along what waits
    assert first.idle
    assert await log.flush(1.0)

    first.append(Audio(b"ee"))
    assert not await log.flush(0.0)
    running.cancel()
    with suppress(asyncio.CancelledError):
        await running
