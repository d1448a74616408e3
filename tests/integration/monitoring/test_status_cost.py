"""The status line costs Redis one look in two seconds, whoever asks and however often."""

from __future__ import annotations

import asyncio
import time
from contextlib import AsyncExitStack

import orjson
import pytest

from common.entries import IngressId, StreamId
from common.errors import RedisUnavailable
from common.options import StreamOptions
from common.presence.status import SHARED_FOR_MS, shared_status
from common.redis.clients import AsyncRedis, RedisServers
from common.redis.keys import Keys
from common.streams.assignments import NewStream, StreamDirectory
from tests.servers import raw_client

pytestmark = pytest.mark.one_server

_STREAMS = 20
KEYS = Keys()


async def _clients(stack: AsyncExitStack, url: str, count: int) -> list[AsyncRedis]:
    clients = [AsyncRedis(RedisServers.parse((url,))) for _ in range(count)]
    for client in clients:
        stack.push_async_callback(client.close)
    return clients


async def test_all_ingresses_share_one_look_at_the_streams(redis_url: str) -> None:
    raw = raw_client(redis_url)
    async with AsyncExitStack() as stack:
        ingresses = await _clients(stack, redis_url, 4)
        directory = StreamDirectory(ingresses[0], KEYS)
        for number in range(1, _STREAMS + 1):
            new = NewStream(StreamId(number), IngressId("i-1"), StreamOptions(), 16_000, "", 0, 60_000, 5_000)
            await directory.create(new)
        raw.config_resetstat()
        began = time.monotonic()
        for _ in range(5):
            lines = await asyncio.gather(*(shared_status(one, KEYS) for one in ingresses for _ in range(5)))
            assert len(set(lines)) == 1
        assert orjson.loads(lines[0])["scheduler"] == {"active": 0, "waiting": _STREAMS}
        looks = raw.info("commandstats")["cmdstat_xinfo|groups"]["calls"]
        assert looks % _STREAMS == 0
        assert 1 <= looks // _STREAMS <= 1 + (time.monotonic() - began) * 1000 // SHARED_FOR_MS
        # An old line is made anew.
        assert raw.pttl(KEYS.status_line) in (-2, *range(SHARED_FOR_MS + 1))  # or it is over already
        raw.delete(KEYS.status_line, KEYS.status_turn)
        await shared_status(ingresses[1], KEYS)
        assert raw.info("commandstats")["cmdstat_xinfo|groups"]["calls"] == looks + _STREAMS
    raw.close()


async def test_one_who_dies_while_making_the_line_is_replaced(redis_url: str) -> None:
    raw = raw_client(redis_url)
    async with AsyncExitStack() as stack:
        (redis,) = await _clients(stack, redis_url, 1)
        raw.set(KEYS.status_turn, 1, px=300)
        line = await asyncio.wait_for(shared_status(redis, KEYS), 60)
        assert orjson.loads(line)["type"] == "status"
    raw.close()


async def test_a_redis_that_is_away_is_told_with_its_address() -> None:
    async with AsyncExitStack() as stack:
        (redis,) = await _clients(stack, "unix:///nowhere/redis.sock", 1)
        with pytest.raises(RedisUnavailable, match=r"Redis at unix:///nowhere/redis\.sock does not answer"):
            await shared_status(redis, KEYS)
