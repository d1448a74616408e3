"""What a worker writes of results: as much after an hour as after a minute, and behind another owner's."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from typing import Any, cast

import orjson
import pytest

from common.entries import Line, LineKind, StreamId, WorkerId, decode_lines
from common.errors import ErrorCode, StreamError
from common.messages import Utterance
from common.monitoring.metrics import WorkerMetrics
from common.options import StreamOptions
from common.redis.clients import RedisServers, SyncRedis
from common.redis.keys import Keys
from common.streams.assignments import Checkpoint
from common.streams.claims import Claims, OwnedStream
from gpu_worker.engine.interface import StreamOutput
from gpu_worker.pipeline.engine_events import Decoded, Failed, Opened, SnapshotTaken
from gpu_worker.pipeline.flow import StreamFlow, StreamTable
from gpu_worker.pipeline.outlet import Outlet
from gpu_worker.pipeline.snapshot_writer import SnapshotWriter
from tests.servers import raw_client
from tests.stream_records import stream_record
from tests.waiting import wait_until

CHUNK_S = 0.16
TTL_MS = 60_000
# Speech has about two words a second, and a result for about every fourth chunk.
WORDS = ("to", "be", "or", "not", "to", "be", "that", "is", "the", "question")


RECORD = stream_record(ttl_ms=TTL_MS)


@pytest.fixture
def redis(redis_url: str) -> Iterator[SyncRedis]:
    made = SyncRedis(RedisServers.parse((redis_url,)))
    yield made
    made.close()


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


@contextmanager
def outlet_of(redis: SyncRedis, owned: OwnedStream, *, dead_letters: bool = True) -> Iterator[Outlet]:
    """An outlet that writes for this stream, on a server where it is open."""
    keys, worker, metrics = Keys(), WorkerId("w1"), WorkerMetrics()
    client = redis.cluster
    client.execute_command("HSET", owned.keys.meta, "epoch", owned.epoch, "ttl_ms", TTL_MS)
    notice = ("k", "o", "a", 0, "d", "w1", "q", owned.last_seq)
    client.execute_command("XADD", owned.keys.results, f"{owned.epoch}-0", *notice)
    for key in (owned.keys.meta, owned.keys.results):
        client.execute_command("PEXPIRE", key, TTL_MS)
    table, lost = StreamTable(1, 160), list[object]()
    claims = Claims(redis, keys, worker)
    outlet = Outlet(
        redis=redis,
        keys=keys,
        worker=worker,
        claims=claims,
        table=table,
        snapshots=SnapshotWriter(redis, claims, table, metrics),
        metrics=metrics,
        on_fenced=lost.extend,
        on_refused=lost.extend,
        on_failure=lost.append,
        dead_letters=dead_letters,
    )
    outlet.start()
    flow = StreamFlow(owned)
    table.reserve(1)
    table.add(flow)
    outlet.put(Opened(flow))
    wait_until(lambda: client.execute_command("EXISTS", keys.ready(0, worker)))
    yield outlet
    assert outlet.stop(60.0)
    assert not lost


def test_the_first_result_of_a_new_owner_repeats_the_text_since_the_checkpoint(
    redis: SyncRedis, client: Any
) -> None:
    """What its predecessor told with these numbers may have ended elsewhere in the text."""
    record = replace(RECORD, epoch=2, checkpoint=Checkpoint(b"1-1", 2560, seq=1, text_chars=3))
    owned = OwnedStream(Keys().stream(StreamId(1)), b"1-1", record, last_seq=3)
    with outlet_of(redis, owned) as outlet:
        for chunk, text in enumerate(
            ("one two", "one two three", "one two three four", "one two three four"), 2
        ):
            outlet.put(Decoded([output(chunk, text)]))
    entries = client.xrange(owned.keys.results, "(2-0")
    assert [entry_id for entry_id, _ in entries] == [b"2-4", b"2-5"]
    assert [orjson.loads(fields[b"d"])[:2] for _, fields in entries] == [[3, " two three four"], [18, ""]]


def test_a_checkpoint_counts_utterances_of_results_that_were_not_sent_again(
    redis: SyncRedis, client: Any
) -> None:
    """A worker that starts without the snapshot repeats no result, but the engine counts on."""
    before = Checkpoint(b"1-1", 2560, seq=1, text_chars=3, utterances=1)
    record = replace(RECORD, epoch=2, checkpoint=before, cold=True)
    owned = OwnedStream(Keys().stream(StreamId(1)), b"1-1", record, last_seq=3, last_acked=7680)
    with outlet_of(redis, owned) as outlet:
        (flow,) = outlet._table.flows()
        ended = replace(output(3, "one two"), utterances=(Utterance(2, "two", 0.1, 0.3),))
        outlet.put(Decoded([ended, output(4, "one two three")]))
        outlet.put(SnapshotTaken(flow, 10_240, 10_240, lambda: b"state", release=True))
    assert [entry_id for entry_id, _ in client.xrange(owned.keys.results, "(2-0")] == [b"2-4"]
    assert client.hget(owned.keys.meta, "ck_samples") == b"10240"
    assert client.hget(owned.keys.meta, "ck_finals") == b"2"


@pytest.mark.parametrize("auto_finalize", [False, True])
def test_who_waits_for_utterances_hears_of_each_second_of_silence(
    redis_url: str, redis: SyncRedis, auto_finalize: bool
) -> None:
    record = replace(RECORD, options=StreamOptions(auto_finalize=auto_finalize))
    owned = OwnedStream(Keys().stream(StreamId(1)), b"1-1", record, 0)
    listener = raw_client(redis_url)
    subscription = listener.pubsub()
    subscription.subscribe(Keys().channel(record.ingress))
    heard: list[Line] = []

    def results() -> int:
        message = subscription.get_message(timeout=0.05)
        if message is not None and message["type"] == "message":
            heard.extend(decode_lines(message["data"]))
        return [line.kind for line in heard].count(LineKind.PARTIAL)

    with outlet_of(redis, owned) as outlet:
        outlet.put(Decoded([output(5, "to")]))
        for chunk in (7, 13):  # those in which a second ends
            silent = replace(output(chunk, "to"), token_ids=(), confidence_scores=(), changed=False)
            outlet.put(Decoded([silent]))
        outlet.put(Decoded([output(14, "to be")]))
        wait_until(lambda: results() == 2)
    listener.close()
    acknowledged = [line.acked for line in heard if line.kind is LineKind.ACK]
    assert acknowledged == ([17_920, 33_280] if auto_finalize else [33_280])


def test_an_error_of_a_later_ownership_follows_the_results_that_count(redis: SyncRedis, client: Any) -> None:
    """Those of the ownership before, which this worker has not dropped yet, may never have been written."""
    owned = OwnedStream(Keys().stream(StreamId(1)), b"1-1", RECORD, 0)
    with outlet_of(redis, owned) as outlet:
        outlet.put(Decoded([output(chunk, "to be") for chunk in range(2, 9)]))
        wait_until(lambda: client.xlen(owned.keys.results) == 8)
        client.hset(owned.keys.meta, "epoch", 3)
        again = OwnedStream(owned.keys, b"1-1", replace(RECORD, epoch=3), last_seq=2, last_acked=5_120)
        outlet.put(Failed(StreamFlow(again), StreamError(ErrorCode.STREAM_LOST, "It is gone.")))
    entry_id, fields = client.xrevrange(owned.keys.results, count=1)[0]
    assert (entry_id, fields[b"k"], fields[b"a"]) == (b"3-3", b"e", b"5120")


@pytest.mark.parametrize("dead_letters", [True, False])
def test_poison_is_kept_unless_it_may_not_be(redis: SyncRedis, client: Any, dead_letters: bool) -> None:
    owned = OwnedStream(Keys().stream(StreamId(1)), b"1-1", RECORD, 0)
    client.xadd(owned.keys.audio, {"o": "0", "p": b"\0\0"}, id="1-1")
    client.pexpire(owned.keys.audio, TTL_MS)
    with outlet_of(redis, owned, dead_letters=dead_letters) as outlet:
        outlet.put(Failed(StreamFlow(owned), StreamError(ErrorCode.POISON, "It ended its workers.")))
    (_, fields) = client.xrevrange(owned.keys.results, count=1)[0]
    assert fields[b"k"] == b"e"
    assert bool(client.exists(owned.keys.dead)) == dead_letters
    assert client.xlen(owned.keys.dead_audio) == int(dead_letters)


def test_a_result_is_as_large_after_an_hour_as_after_a_minute(
    redis_url: str, redis: SyncRedis, client: Any
) -> None:
    owned = OwnedStream(Keys().stream(StreamId(1)), b"1-1", RECORD, 0)
    with outlet_of(redis, owned) as outlet:
        least, most = _play_an_hour(redis_url, client, owned, outlet)
    assert most <= 1.05 * least


def _play_an_hour(url: str, client: Any, owned: OwnedStream, outlet: Outlet) -> tuple[float, float]:
    """The least and the most bytes that a result takes about minutes 1, 10 and 60."""
    listener = raw_client(url)
    subscription = listener.pubsub()
    subscription.subscribe(Keys().channel(RECORD.ingress))
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
    assert client.strlen(owned.keys.text) > 0.95 * len(text), "the text itself is kept once"
    listener.close()
    return min(at_minutes.values()), max(at_minutes.values())


def _traffic(client: Any) -> int:
    stats = client.info("stats")
    return cast("int", stats["total_net_input_bytes"] + stats["total_net_output_bytes"])


def _drop(subscription: Any) -> None:
    while subscription.get_message(timeout=0.05) is not None:
        pass
