"""The log of a stream's results is bounded by number and by bytes, on a real server."""

from __future__ import annotations

import dataclasses

import pytest

from common.entries import IngressId, LineKind, StreamId, WorkerId
from common.options import StreamOptions
from common.redis.clients import RedisServers, SyncRedis
from common.redis.keys import RESULTS_MAX_BYTES, RESULTS_MAX_LENGTH, RESULTS_MIN_LENGTH, Keys
from common.streams.assignments import Checkpoint, StreamRecord
from common.streams.claims import OwnedStream
from common.streams.result_writer import ResultWriter
from tests.servers import raw_client

_TTL_MS = 60_000
# Redis trims whole nodes, of at most 4 KiB or one entry.
_ABOUT = 1.5


def _owned(keys: Keys) -> OwnedStream:
    record = StreamRecord(
        stream=StreamId(1),
        ingress=IngressId("i1"),
        options=StreamOptions(),
        sample_rate=16_000,
        token_hash="",
        created_ms=0,
        ttl_ms=_TTL_MS,
        grace_ms=0,
        owner=WorkerId("w1"),
        epoch=1,
        checkpoint=Checkpoint(None, 0, 0),
        finished=False,
    )
    return OwnedStream(keys.stream(StreamId(1)), b"1-1", record, 0, b"{}")


@pytest.mark.parametrize(
    ("result_bytes", "kept"),
    [
        (400, RESULTS_MAX_LENGTH),
        (50_000, RESULTS_MAX_BYTES // 50_000),  # an hour of speech
        (300_000, RESULTS_MIN_LENGTH),
    ],
)
def test_large_results_are_fewer(redis_url: str, result_bytes: int, kept: int) -> None:
    client = raw_client(redis_url)
    redis = SyncRedis(RedisServers.parse((redis_url,)))
    writer = ResultWriter(redis, Keys())
    owned = _owned(Keys())
    client.xadd(owned.keys.results, {"k": "o", "j": "{}"}, id="1-0")
    client.pexpire(owned.keys.results, _TTL_MS)
    written = 400
    for seq in range(1, written + 1):
        batch = writer.batch()
        batch.say(owned, IngressId("i1"), LineKind.PARTIAL, seq, b"x" * result_bytes)
        assert writer.write(batch) == []
    length = client.xlen(owned.keys.results)
    assert kept <= length <= _ABOUT * kept + 1
    (newest,) = client.xrevrange(owned.keys.results, count=1)
    assert newest[0] == f"1-{written}".encode()
    redis.close()


def test_a_lost_stream_is_told_and_only_that_one(redis_url: str) -> None:
    client = raw_client(redis_url)
    redis = SyncRedis(RedisServers.parse((redis_url,)))
    writer = ResultWriter(redis, Keys())
    kept = _owned(Keys())
    gone = dataclasses.replace(kept, keys=Keys().stream(StreamId(2)))
    taken = dataclasses.replace(kept, keys=Keys().stream(StreamId(3)))
    for owned, entry_id in ((kept, "1-0"), (taken, "2-0")):
        client.xadd(owned.keys.results, {"k": "o", "j": "{}"}, id=entry_id)
        client.pexpire(owned.keys.results, _TTL_MS)
    batch = writer.batch()
    for owned in (gone, kept, taken):
        batch.say(owned, IngressId("i1"), LineKind.PARTIAL, 1, b"{}")
        batch.acknowledge(owned, [b"1-1"])
    assert writer.write(batch) == [gone, taken]
    assert writer.write(batch) == [gone, taken], "again, as after a lost reply"
    assert client.xlen(kept.keys.results) == 2
    redis.close()
