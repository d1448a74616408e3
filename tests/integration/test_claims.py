"""Assignments that change hands, and that end."""

from __future__ import annotations

import pytest

from common.entries import LAYOUT_VERSION, IngressId, StreamId, WorkerId
from common.options import StreamOptions
from common.redis.clients import AsyncRedis, RedisServers, SyncRedis, blocking_client
from common.redis.keys import FINISHED_STREAM_TTL_MS, Keys
from common.streams.assignments import NewStream, StreamDirectory
from common.streams.claims import Claims, OwnedStream
from tests.servers import raw_client


def test_a_worker_with_thousands_of_streams_is_taken_over_whole(redis_url: str) -> None:
    """More than Lua can pass to one command."""
    client = raw_client(redis_url)
    redis = SyncRedis(RedisServers.parse((redis_url,)))
    keys = Keys()
    dead, heir = WorkerId("w1"), WorkerId("w2")
    claims = Claims(redis, keys, heir, chunk_ms=160)
    claims.prepare()
    new = keys.assignments(0)
    pipe = client.pipeline(transaction=False)
    for number in range(1, 9001):
        pipe.xadd(new, {b"sid": number, b"v": LAYOUT_VERSION})
    pipe.execute()
    client.xreadgroup("workers", dead, {new: ">"}, count=9000)
    first = claims.pending_of(dead, 2500)
    assert [entry.stream for entry in first] == list(range(1, 2501))
    rest = claims.pending_of(dead, 10_000)
    assert [entry.stream for entry in rest] == list(range(2501, 9001))
    assert (claims.num_pending(dead), claims.num_pending(heir)) == (0, 9000)
    assert len(claims.pending_of(heir, 8500)) == 8500
    redis.close()


@pytest.mark.parametrize(
    ("grace_ms", "ttl_ms"), [(0, FINISHED_STREAM_TTL_MS), (600_000, 600_000)], ids=["no grace", "long grace"]
)
async def test_a_finished_stream_is_kept_for_the_grace_of_its_client(
    redis_url: str, grace_ms: int, ttl_ms: int
) -> None:
    servers, keys, client = RedisServers.parse((redis_url,)), Keys(), raw_client(redis_url)
    ingress = AsyncRedis(servers)
    new = NewStream(StreamId(1), IngressId("i"), StreamOptions(), 16_000, "", 0, 60_000, grace_ms)
    stream = await StreamDirectory(ingress, keys).create(new)
    await ingress.close()
    redis = SyncRedis(servers)
    claims = Claims(redis, keys, WorkerId("w1"))
    claims.prepare()
    blocking = blocking_client(servers, 0, 100)
    (entry,) = claims.wait(blocking, [0], 1, 100)
    blocking.close()
    owned = claims.open(entry)
    assert isinstance(owned, OwnedStream)
    assert redis.cluster.execute_command(*claims.finish_command(owned)) == 1
    for key in (stream.meta, stream.results):
        assert ttl_ms - 5_000 < client.pttl(key) <= ttl_ms
    assert not client.exists(stream.audio)
    redis.close()
