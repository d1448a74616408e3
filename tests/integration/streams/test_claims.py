"""Assignments that change hands, and that end."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest
from redis.connection import AbstractConnection

from common.entries import LAYOUT_VERSION, IngressId, StreamId, WorkerId
from common.options import StreamOptions
from common.redis.clients import AsyncRedis, RedisServers, SyncRedis, blocking_client
from common.redis.keys import FINISHED_STREAM_TTL_MS, Keys
from common.streams.assignments import NewStream, StreamDirectory
from common.streams.claims import Claims, OwnedStream, Refused
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
    assert (claims.owners()[dead], claims.owners()[heir]) == (0, 9000)
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
    owned = claims.open([entry])[0]
    assert isinstance(owned, OwnedStream)
    assert redis.cluster.execute_command(*claims.finish_command(owned)) == 1
    for key in (stream.meta, stream.results):
        assert ttl_ms - 5_000 < client.pttl(key) <= ttl_ms
    assert not client.exists(stream.audio)
    redis.close()


@pytest.mark.parametrize("block_ms", [None, 100])
def test_no_more_streams_are_claimed_than_there_are_slots_however_many_shards_have_some(
    redis_url: str, block_ms: int | None
) -> None:
    servers, keys, client = RedisServers.parse((redis_url,), 3), Keys(3), raw_client(redis_url)
    redis, blocking = SyncRedis(servers), blocking_client(servers, 0, 100)
    claims = Claims(redis, keys, WorkerId("w1"))
    claims.prepare()
    for number in range(1, 8):
        client.xadd(keys.assignments(number % 3), {b"sid": number, b"v": LAYOUT_VERSION})
    claimed: list[StreamId] = []
    for count, shards in ((1, [0]), (2, [0, 1]), (5, [1, 2]), (6, [1, 2]), (6, [])):
        entries = claims.wait(blocking, [0, 1, 2], count, block_ms)
        assert [entry.stream % 3 for entry in entries] == shards
        claimed += [entry.stream for entry in entries]
        assert claims.owners()[WorkerId("w1")] == len(claimed)
    assert sorted(claimed) == list(range(1, 8))
    blocking.close()
    redis.close()


@contextmanager
def counted_round_trips(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[int]]:
    """Lengths of what redis-py's connections send meanwhile, one for each time that they wait for answers."""
    sent: list[int] = []
    send: Any = AbstractConnection.send_packed_command

    def counted(self: Any, command: Any, *arguments: Any, **named: Any) -> Any:
        sent.append(len(command))
        return send(self, command, *arguments, **named)

    with monkeypatch.context() as patch:
        patch.setattr(AbstractConnection, "send_packed_command", counted)
        yield sent


async def test_what_is_asked_of_many_streams_is_few_round_trips(
    redis_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """600 streams of three shards; one is unreadable, which is its own misfortune alone."""
    servers, keys = RedisServers.parse((redis_url,), 3), Keys(3)
    ingress, redis, client = AsyncRedis(servers), SyncRedis(servers), raw_client(redis_url)
    directory = StreamDirectory(ingress, keys)
    for number in range(1, 601):
        await directory.create(
            NewStream(StreamId(number), IngressId("i"), StreamOptions(), 16_000, "", 0, 60_000, 0)
        )
    await ingress.close()
    client.delete(keys.stream(StreamId(5)).results)
    client.set(keys.stream(StreamId(5)).results, "no stream", px=60_000)
    claims = Claims(redis, keys, WorkerId("w1"))
    claims.prepare()
    blocking = blocking_client(servers, 0, 100)
    entries = claims.wait(blocking, [0, 1, 2], 600, 100)
    blocking.close()
    with counted_round_trips(monkeypatch) as opening:
        openings = claims.open(entries)
    assert len(opening) <= 3 + 1, "256 at once, and what a new connection says first"
    owned = [opening for opening in openings if isinstance(opening, OwnedStream)]
    assert [(stream.stream, stream.epoch) for stream in owned] == [
        (entry.stream, 1) for entry in entries if entry.stream != 5
    ]
    (refused,) = [opening for opening in openings if isinstance(opening, Refused)]
    assert refused.entry.stream == 5
    assert "WRONGTYPE" in str(refused.error)

    client.hset(keys.stream(StreamId(7)).meta, "epoch", 2)
    client.hset(keys.stream(StreamId(8)).meta, "owner", "w2")
    client.delete(keys.stream(StreamId(9)).meta)
    with counted_round_trips(monkeypatch) as asking:
        answers = claims.still_owned(owned)
    assert len(asking) <= 3
    assert {one.stream for one, ours in zip(owned, answers, strict=True) if not ours} == {7, 8, 9}
    with counted_round_trips(monkeypatch) as letting_go:
        claims.let_go(owned, cleared=False)
    assert len(letting_go) <= 3
    gone = [number for number in range(1, 601) if client.hget(keys.stream(StreamId(number)).meta, "let_go")]
    assert gone == [number for number in range(1, 601) if number not in (5, 7, 9)]
    client.set(keys.stream(StreamId(10)).meta, "no stream", px=60_000)
    assert claims.still_owned(owned) == answers, "nobody else can have what Redis refuses; it says of others"
    redis.close()
    client.close()
