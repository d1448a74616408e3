"""Snapshots in Redis: written in pieces, valid as a whole or not at all."""

from __future__ import annotations

import os
from collections.abc import AsyncIterator

import pytest

from common.entries import IngressId, StreamId, WorkerId
from common.monitoring.metrics import WorkerMetrics
from common.options import StreamOptions
from common.redis.clients import AsyncRedis, RedisServers, SyncRedis, blocking_client
from common.redis.keys import Keys
from common.streams.assignments import Checkpoint, NewStream, StreamDirectory
from common.streams.claims import Claims, OwnedStream, Stored
from gpu_worker.pipeline.flow import StreamFlow, StreamTable
from gpu_worker.pipeline.snapshot_writer import MAX_UNDER_WAY, Snapshot, SnapshotWriter
from tests.servers import raw_client
from tests.waiting import until

_KEYS = Keys()
_CHECKPOINT = Checkpoint(None, 16_000, 6)


@pytest.fixture
async def redis(redis_url: str) -> AsyncIterator[SyncRedis]:
    """A connection, and a stream 7 that no worker has claimed."""
    servers = RedisServers.parse((redis_url,))
    ingress = AsyncRedis(servers)
    new = NewStream(StreamId(7), IngressId("i"), StreamOptions(), 16_000, "", 0, 60_000, 0)
    await StreamDirectory(ingress, _KEYS).create(new)
    await ingress.close()
    redis = SyncRedis(servers)
    yield redis
    redis.close()


def claim(redis: SyncRedis, worker: str, after: str | None = None) -> tuple[Claims, OwnedStream]:
    """Own the stream; with `after`, from the worker that owned it."""
    claims = Claims(redis, _KEYS, WorkerId(worker))
    claims.prepare()
    if after is None:
        blocking = blocking_client(redis.servers, 0, 100)
        (entry,) = claims.wait(blocking, [0], 1, 100)
        blocking.close()
    else:
        (entry,) = claims.pending_of(WorkerId(after), 10)
    owned = claims.open([entry])[0]
    assert isinstance(owned, OwnedStream)
    return claims, owned


def store(
    redis: SyncRedis, claims: Claims, owned: OwnedStream, data: bytes, checkpoint: Checkpoint = _CHECKPOINT
) -> int:
    """Run the commands of a checkpoint; the reply of the last."""
    for command in claims.checkpoint_commands(owned, checkpoint, data):
        reply = redis.cluster.execute_command(*command)
    return int(reply)


@pytest.mark.parametrize("size", [1, 256 * 1024, 256 * 1024 + 1, 2_000_000])
async def test_the_next_owner_reads_a_snapshot_as_it_was(redis: SyncRedis, redis_url: str, size: int) -> None:
    data = os.urandom(size)
    claims, owned = claim(redis, "w1")
    assert claims.snapshots([owned]) == [None]
    for _ in range(2):
        assert store(redis, claims, owned, data) == 1
    heir, taken = claim(redis, "w2", after="w1")
    assert taken.record.checkpoint == _CHECKPOINT
    assert heir.snapshots([taken]) == [Stored(data, "")]
    client = raw_client(redis_url)
    assert client.keys("px:{0}:7:s:*") == []
    assert 0 < client.pttl(owned.keys.snapshot) <= 60_000


async def test_a_snapshot_that_is_not_whole_is_none(redis: SyncRedis, redis_url: str) -> None:
    claims, owned = claim(redis, "w1")
    assert store(redis, claims, owned, b"first") == 1
    commands = list(claims.checkpoint_commands(owned, _CHECKPOINT, os.urandom(600_000)))
    for command in (commands[0], *commands[2:]):
        reply = redis.cluster.execute_command(*command)
        ttls = [raw_client(redis_url).pttl(key) for key in raw_client(redis_url).keys("px:{0}:7:s:*")]
        assert all(ttl > 0 for ttl in ttls), "whenever its writer dies"
    assert reply == 0
    assert raw_client(redis_url).lrange(owned.keys.snapshot, 0, -1) == [b"first"]
    assert raw_client(redis_url).keys("px:{0}:7:s:*") == []


async def test_a_stale_owner_and_one_of_an_ended_stream_store_nothing(
    redis: SyncRedis, redis_url: str
) -> None:
    claims, owned = claim(redis, "w1")
    heir, taken = claim(redis, "w2", after="w1")
    client = raw_client(redis_url)
    # The heir's pieces are under way meanwhile: each owner has a list of its own.
    pieces = list(heir.checkpoint_commands(taken, _CHECKPOINT, b"heir's"))
    for command in pieces[:-1]:
        client.execute_command(*command)
    assert store(redis, claims, owned, b"stale") == 0
    assert client.execute_command(*pieces[-1]) == 1
    assert client.lrange(taken.keys.snapshot, 0, -1) == [b"heir's"]
    client.execute_command(*heir.finish_command(taken))
    assert store(redis, heir, taken, b"late") == 0
    assert client.keys("px:{0}:7:s*") == []


@pytest.mark.parametrize(
    "later",
    [Checkpoint(b"1-9", 48_000, 18), Checkpoint(b"1-9", 16_000, 9)],
    ids=["after more audio", "after more answers to finalize"],
)
async def test_a_checkpoint_never_goes_back(redis: SyncRedis, redis_url: str, later: Checkpoint) -> None:
    """A stream is handed over while an older snapshot of it waits, whose audio is trimmed by then."""
    claims, owned = claim(redis, "w1")
    client = raw_client(redis_url)
    older = list(claims.checkpoint_commands(owned, Checkpoint(b"1-3", 16_000, 6), b"older"))
    for command in older[:-1]:
        client.execute_command(*command)
    assert store(redis, claims, owned, b"later", later) == 1
    assert client.execute_command(*older[-1]) == 0
    heir, taken = claim(redis, "w2", after="w1")
    assert taken.record.checkpoint == later
    assert heir.snapshots([taken]) == [Stored(b"later", "")]
    assert client.keys("px:{0}:7:s:*") == []


async def test_the_writer_stores_what_it_is_given_and_knows_when_it_has_enough(redis: SyncRedis) -> None:
    claims, owned = claim(redis, "w1")
    table, flow = StreamTable(1), StreamFlow(owned)
    table.reserve(1)
    table.add(flow)
    writer = SnapshotWriter(redis, claims, table, WorkerMetrics())
    for number in range(MAX_UNDER_WAY):
        assert writer.has_room()
        writer.expect()
        writer.put(Snapshot(flow, _CHECKPOINT, (b"%d" % number).__bytes__))
    assert not writer.has_room()
    writer.start()
    last = b"%d" % (MAX_UNDER_WAY - 1)
    pieces = redis.cluster.execute_command
    await until(lambda: pieces("LRANGE", owned.keys.snapshot, 0, -1) == [last], what="the last snapshot")
    await until(writer.has_room, what="room")
    heir, taken = claim(redis, "w2", after="w1")
    assert heir.snapshots([taken]) == [Stored(last, "")]
    flow.lost = True
    writer.expect()
    writer.put(Snapshot(flow, _CHECKPOINT, b"of a stream that is lost".__bytes__))
    assert writer.stop(60.0)
    assert heir.snapshots([taken]) == [Stored(last, "")]
