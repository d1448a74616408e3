"""Loops that call Redis end when they are cancelled, at whatever moment that comes.

Python 3.11's `asyncio.wait_for` loses a cancellation that comes together with a result; a loop that calls
it, in a library too, then goes on for ever, and a process that waits for it never stops.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from random import Random

import pytest

from common.entries import IngressId, StreamId
from common.presence.leases import IngressPresence, IngressReport
from common.redis.clients import AsyncRedis, PipelinedCommands, RedisServers
from common.redis.keys import Keys
from common.streams.result_reader import Position, catch_up


def _beat(redis: AsyncRedis) -> Callable[[], Awaitable[object]]:
    presence = IngressPresence(PipelinedCommands(redis, 0), Keys(), IngressId("i-1"))
    return lambda: presence.beat(IngressReport(0, 0))


def _catch_up(redis: AsyncRedis) -> Callable[[], Awaitable[object]]:
    position = Position(Keys().stream(StreamId(1)), 0, 0)
    return lambda: catch_up(redis, [position])


@pytest.mark.parametrize("make", [_beat, _catch_up])
async def test_a_loop_ends_when_it_is_cancelled(
    redis_url: str, make: Callable[[AsyncRedis], Callable[[], Awaitable[object]]]
) -> None:
    redis = AsyncRedis(RedisServers.parse((redis_url,)))
    call = make(redis)

    async def loop() -> None:
        while True:
            await call()

    random = Random(0)
    for _ in range(300):
        task = asyncio.create_task(loop())
        for _ in range(random.randrange(1, 40)):
            await asyncio.sleep(0)
        await asyncio.sleep(random.uniform(0, 0.001))
        task.cancel()
        done, _ = await asyncio.wait((task,), timeout=60.0)
        assert done, "it goes on"
    await redis.close()
