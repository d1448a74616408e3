"""When audio is committed, and what becomes of it where Redis does not take it.

The rest of the log is tested against real servers.
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from contextlib import suppress
from functools import partial
from typing import Any, cast

import pytest

from common.entries import StreamId
from common.errors import ErrorCode, Unavailable
from common.messages import Audio
from common.process.pace import Pace
from common.redis.clients import AsyncRedis, RedisServers
from common.redis.keys import Keys
from common.streams.audio_log import AudioLog
from tests.device.paced_host import Host
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
    """A Redis that takes everything at once: how many entries each commit brought (an AsyncRedis).

    used: percent of its memory in use.
    """

    def __init__(self) -> None:
        self.servers = RedisServers.parse(("unix:///nowhere/redis.sock",))
        self.commits: list[int] = []
        self.used = 0

    def pipelined(self, _server: int) -> _Taking:
        return self

    async def send(self, parts: Sequence[Any], count: int) -> list[bytes]:
        replies = [b"1-1"] * count
        if b"INFO" in parts[-1]:
            count -= 1
            replies[-1] = b"used_memory:%d\r\nmaxmemory:100\r\n" % self.used
        if count:
            self.commits.append(count)
        return replies


async def test_commits_keep_their_distance_and_neither_a_lone_message_nor_an_end_waits(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    for interval in ("_COMMIT_EVERY_S", "_BUSY_COMMIT_EVERY_S"):
        monkeypatch.setattr(f"common.streams.audio_log.{interval}", 3600.0)  # never within this test
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


@pytest.mark.parametrize(("share", "next_commit_s"), [(0.3, 0.005), (0.65, 0.0075), (0.95, 0.010)])
async def test_commits_of_a_busy_ingress_are_further_apart(
    monkeypatch: pytest.MonkeyPatch, share: float, next_commit_s: float
) -> None:
    host = Host()
    monkeypatch.setattr(
        "common.streams.audio_log.Pace",
        lambda longest_s, *, shortest_s: Pace(
            longest_s, lambda: host.now_s, lambda: host.used_s, shortest_s=shortest_s
        ),
    )
    keys = Keys()
    log = AudioLog(cast(AsyncRedis, _Taking()), keys, give_up_ms=100)
    (server,) = log._logs
    running = asyncio.create_task(log.run())
    appender = log.open(keys.stream(StreamId(1)), lambda _: None)
    for _ in range(40):
        host.now_s += 0.1
        host.used_s += 0.1 * share
        appender.append(Audio(b"aa"))
        began = asyncio.get_running_loop().time()
        await until(lambda: appender.idle, what="the commit")
    assert server._next_commit - began >= next_commit_s - 1e-4
    assert server._pace.interval_s == pytest.approx(next_commit_s, abs=1e-4)
    running.cancel()
    with suppress(asyncio.CancelledError):
        await running


async def test_a_stream_that_is_ahead_waits_while_memory_is_short() -> None:
    redis = _Taking()
    redis.used = 91
    keys = Keys()
    log = AudioLog(cast(AsyncRedis, redis), keys, give_up_ms=100)
    running = asyncio.create_task(log.run())
    ahead = {1: 0.0, 2: 6.0, 3: 6.0}

    def told(number: int, _num_samples: int) -> float:
        return ahead[number]

    near, far, catching_up = (
        log.open(keys.stream(StreamId(n)), lambda _: None, ahead_s=partial(told, n)) for n in ahead
    )

    near.append(Audio(b"aa"))
    await until(lambda: near.idle, what="the first look at the memory")
    for appender in (near, far, catching_up):
        appender.append(Audio(b"bb"))
    await until(lambda: near.idle, what="the stream in real time")
    assert not await log.flush(0.3)  # longer than the time until a stream that waits is looked at again
    assert not far.idle
    assert not catching_up.idle
    assert far.failed is None  # nor does its outage begin

    ahead[3] = 4.0
    await until(lambda: catching_up.idle, what="the stream that is less ahead by now")
    assert not far.idle
    redis.used = 80
    await until(lambda: far.idle, what="the end of the shortage")
    assert await log.flush(1.0)
    assert sum(redis.commits) == 4
    running.cancel()
    with suppress(asyncio.CancelledError):
        await running
