"""Assignments that change hands."""

from __future__ import annotations

from common.claims import Claims
from common.entries import LAYOUT_VERSION, WorkerId
from common.keys import Keys
from common.redis import RedisServers, SyncRedis
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
