"""A result costs as much at the end of an hour as at its beginning: in Redis, and on its way through it."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, cast

import pytest

from common.entries import IngressId, StreamId, WorkerId
from common.monitoring.metrics import WorkerMetrics
from common.options import StreamOptions
from common.redis.clients import RedisServers, SyncRedis
from common.redis.keys import Keys
from common.streams.assignments import Checkpoint, StreamRecord
from common.streams.claims import Claims, OwnedStream
from gpu_worker.engine.interface import StreamOutput
from gpu_worker.engine_events import Decoded, Opened
from gpu_worker.flow import StreamFlow, StreamTable
from gpu_worker.outlet import Outlet
from gpu_worker.snapshot_writer import SnapshotWriter
from tests.servers import raw_client
from tests.waiting import wait_until

CHUNK_S = 0.16
TTL_MS = 60_000
# Speech has about two words a second, and a result for about every fourth chunk.
WORDS = ("to", "be", "or", "not", "to", "be", "that", "is", "the", "question")


@pytest.fixture
def client(redis_url: str) -> Iterator[Any]:
    made = raw_client(redis_url)
    yield made
    made.close()


def output(chunk: int, text: str) -> StreamOutput:
    return StreamOutput(
        stream=StreamId(1),
        samples_decoded=int(chunk * CHUNK_S * 16_000),
        token_ids=(17, 311),
        confidence_scores=(0.8037031888961792, 0.9645384311676025),
        token_frames=(2 * chunk, 2 * chunk + 1),
        text=text,
        last_state="speech",
        turn_detection="running",
        is_final=False,
        is_turn_event=False,
        words=None,
        changed=True,
    )


def test_a_result_is_as_large_after_an_hour_as_after_a_minute(redis_url: str, client: Any) -> None:
    redis, keys = SyncRedis(RedisServers.parse((redis_url,))), Keys()
    record = StreamRecord(
        stream=StreamId(1),
        ingress=IngressId("i1"),
        options=StreamOptions(),
        sample_rate=16_000,
        token_hash="",
        created_ms=0,
        ttl_ms=TTL_MS,
        grace_ms=0,
        owner=WorkerId("w1"),
        epoch=1,
        checkpoint=Checkpoint(),
        finished=False,
    )
    owned = OwnedStream(keys.stream(StreamId(1)), b"1-1", record, 0)
    client.hset(owned.keys.meta, mapping={"epoch": 1, "ttl_ms": TTL_MS})
    client.xadd(owned.keys.results, {"k": "o", "a": 0, "d": "w1", "q": 0}, id="1-0")
    for key in (owned.keys.meta, owned.keys.results):
        client.pexpire(key, TTL_MS)
    table = StreamTable(1, 160)
    claims = Claims(redis, keys, WorkerId("w1"))
    lost: list[object] = []
    metrics = WorkerMetrics()
    outlet = Outlet(
        redis=redis,
        keys=keys,
        worker=WorkerId("w1"),
        claims=claims,
        table=table,
        snapshots=SnapshotWriter(redis, claims, table, metrics),
        metrics=metrics,
        on_fenced=lost.extend,
        on_failure=lost.append,
    )
    outlet.start()
    flow = StreamFlow(owned)
    table.reserve(1)
    table.add(flow)
    outlet.put(Opened(flow))
    wait_until(lambda: client.exists(keys.ready(0, WorkerId("w1"))))
    client.pexpire(keys.ready(0, WorkerId("w1")), TTL_MS)
    listener = raw_client(redis_url)
    subscription = listener.pubsub()
    subscription.subscribe(keys.channel(record.ingress))
    text, chunk, said = "", 0, 0

    def play(until_s: float) -> float:
        """Bytes that Redis takes in and gives out for a result, until this time of the stream."""
        nonlocal text, chunk, said
        wait_until(lambda: client.xinfo_stream(owned.keys.results)["entries-added"] == said + 1)
        before, results = _traffic(client), said
        while chunk * CHUNK_S < until_s:
            chunk += 4
            text = f"{text} {WORDS[said % len(WORDS)]}".strip()
            outlet.put(Decoded([output(chunk, text)]))
            said += 1
        wait_until(outlet._queue.empty, 60)  # no question to Redis meanwhile, which would count
        wait_until(lambda: client.xinfo_stream(owned.keys.results)["entries-added"] == said + 1, 60)
        _drop(subscription)
        return (_traffic(client) - before) / (said - results)

    at_minutes = {}
    for minute in (1, 10, 60):
        play(60 * minute - 20)
        at_minutes[minute] = play(60 * minute + 60)
        assert client.memory_usage(owned.keys.results, samples=0) <= 128 << 10
    assert not lost
    assert outlet.stop(5.0)
    text_bytes = client.strlen(owned.keys.text)
    assert text_bytes > 0.95 * len(text), "the text itself is kept once"
    least, most = min(at_minutes.values()), max(at_minutes.values())
    assert most <= 1.05 * least, at_minutes
    listener.close()
    redis.close()


def _traffic(client: Any) -> int:
    stats = client.info("stats")
    return cast("int", stats["total_net_input_bytes"] + stats["total_net_output_bytes"])


def _drop(subscription: Any) -> None:
    while subscription.get_message(timeout=0.05) is not None:
        pass
