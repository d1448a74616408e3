"""The log of a stream's results is bounded, and the text is kept once beside it, on a real server."""

from __future__ import annotations

import dataclasses
import random
from collections.abc import Iterator
from typing import Any

import pytest

from common.entries import IngressId, LineKind, StreamId, decode_record, encode_record
from common.messages import Result
from common.redis.clients import AsyncRedis, RedisServers, SyncRedis
from common.redis.connect import pack
from common.redis.keys import RESULTS_MAX_LENGTH, Keys
from common.streams.claims import OwnedStream
from common.streams.kept_text import KeptText, ResultLog, read_kept_text
from common.streams.result_reader import Position, catch_up
from common.streams.result_writer import ResultWriter
from tests.fake_backplane import some_result
from tests.servers import raw_client
from tests.stream_records import owned_stream

_TTL_MS = 60_000
_MAX_BYTES = 128 << 10


def _owned(keys: Keys, epoch: int = 1) -> OwnedStream:
    return owned_stream(keys=keys, ttl_ms=_TTL_MS, epoch=epoch)


def _begin(client: Any, owned: OwnedStream, epoch: int = 1) -> None:
    client.hset(owned.keys.meta, mapping={"epoch": epoch, "ttl_ms": _TTL_MS})
    client.xadd(owned.keys.results, {"k": "o", "a": 0, "d": "w1", "q": 0}, id=f"{epoch}-0")
    for key in (owned.keys.meta, owned.keys.results):
        client.pexpire(key, _TTL_MS)


@pytest.fixture
def client(redis_url: str) -> Iterator[Any]:
    made = raw_client(redis_url)
    yield made
    made.close()


@pytest.fixture
def redis(redis_url: str) -> Iterator[SyncRedis]:
    made = SyncRedis(RedisServers.parse((redis_url,)))
    yield made
    made.close()


class Speaker:
    """Writes the results of a stream as the outlet does."""

    def __init__(self, redis: SyncRedis, owned: OwnedStream, log: ResultLog | None = None) -> None:
        self.owned, self.text, self.seq = owned, "", 0
        self.log = log or ResultLog(chars=0, kept_seq=0, kept_chars=0, kept_bytes=0)
        self._writer = ResultWriter(redis, Keys())

    def say(
        self, new: str, kind: LineKind = LineKind.PARTIAL, *, text: str | None = None
    ) -> list[OwnedStream]:
        self.text = self.text + new if text is None else text
        self.seq += 1
        body = encode_record(some_result(self.seq, self.text), self.log.text_from(self.text))
        batch = self._writer.batch()
        batch.say(
            self.owned, IngressId("i1"), kind, self.seq, self.seq, body, max_length=self.log.added(len(body))
        )
        if self.log.is_due:
            command = self.log.keep(self.owned.keys, self.owned.epoch, self.seq)
            assert command is not None
            batch.keep_text(self.owned, command)
        written = self._writer.write(batch)
        if written.text_gone:
            self.log.keep_all_again()
        return written.lost


@pytest.mark.parametrize(
    "sizes", [(8, 40), (100, 900), (2_000, 30_000)], ids=["words", "sentences", "long utterances"]
)
def test_the_log_is_bounded_at_any_age(redis: SyncRedis, client: Any, sizes: tuple[int, int]) -> None:
    owned = _owned(Keys())
    _begin(client, owned)
    speaker, chance = Speaker(redis, owned), random.Random(1)
    for number in range(900):
        assert speaker.say("x" * chance.randint(*sizes)) == []
        if number == 600:  # another owner, which does not know how large the log is
            record = dataclasses.replace(owned.record, epoch=2)
            heir = dataclasses.replace(owned, record=record)
            client.hset(owned.keys.meta, "epoch", 2)
            client.xadd(owned.keys.results, {"k": "o", "a": 0, "d": "w1", "q": speaker.seq}, id="2-0")
            kept = client.hmget(owned.keys.meta, "text_seq", "text_chars")
            log = ResultLog(
                chars=len(speaker.text),
                kept_seq=int(kept[0]),
                kept_chars=int(kept[1]),
                kept_bytes=client.strlen(owned.keys.text),
            )
            took_over = Speaker(redis, heir, log)
            took_over.text, took_over.seq = speaker.text, speaker.seq
            speaker = took_over
        if number % 50 == 0:
            assert client.memory_usage(owned.keys.results, samples=0) <= _MAX_BYTES
            assert client.xlen(owned.keys.results) <= 1.5 * RESULTS_MAX_LENGTH
    (newest,) = client.xrevrange(owned.keys.results, count=1)
    assert newest[0] == b"2-900"


async def _text_at(url: str, owned: OwnedStream, last_seq: int, epoch: int = 1) -> list[Result]:
    """What a client is told that resumes behind `last_seq`, as an ingress makes it of what is kept."""
    redis = AsyncRedis(RedisServers.parse((url,)))
    kept = await read_kept_text(redis, owned.keys)
    position, text, told, more = Position(owned.keys, epoch, min(last_seq, kept.seq)), kept.text, [], True
    while more:
        (missed,) = await catch_up(redis, [position])
        for line in missed.lines:
            result = decode_record(line, text)
            text, position = result.text, Position(owned.keys, line.epoch, line.seq)
            if line.seq > last_seq:
                told.append(result)
        more = missed.more
    await redis.close()
    return told


async def test_whoever_resumes_gets_the_whole_text_of_every_result(
    redis_url: str, redis: SyncRedis, client: Any
) -> None:
    owned = _owned(Keys())
    _begin(client, owned)
    speaker, chance, texts = Speaker(redis, owned), random.Random(2), [""]
    for number in range(500):
        speaker.say(chance.choice(("", " wört", " 日本", " \U0001f600", "s")) if number else "Größe")
        texts.append(speaker.text)
        if number % 37 == 0 or number > 490:
            first = int(client.xrange(owned.keys.results, "(1-0", count=1)[0][0].split(b"-")[1])
            for last_seq in {
                speaker.seq,
                max(first - 1, speaker.seq - 3),
                (first + speaker.seq) // 2,
                first - 1,
            }:
                told = await _text_at(redis_url, owned, last_seq)
                assert [result.text for result in told] == texts[last_seq + 1 :]
    assert speaker.text.startswith(client.get(owned.keys.text).decode())
    assert client.strlen(owned.keys.text) > 0.9 * len(speaker.text.encode())
    assert 0 < client.pttl(owned.keys.text) <= _TTL_MS


async def test_a_text_that_is_heard_otherwise_takes_the_place_of_its_end(
    redis_url: str, redis: SyncRedis, client: Any
) -> None:
    owned = _owned(Keys())
    _begin(client, owned)
    speaker, texts = Speaker(redis, owned), [""]
    for number in range(100):
        changed = f"{speaker.text[:-6]} kleiner" if number in (40, 41, 90) else None
        speaker.say(" größe", text=changed)
        texts.append(speaker.text)
    for last_seq in (0, 39, 40, 63, 64, 90, 91, 99):
        told = await _text_at(redis_url, owned, last_seq)
        assert [result.text for result in told] == texts[last_seq + 1 :]


async def test_a_text_whose_end_redis_forgot_is_kept_anew(
    redis_url: str, redis: SyncRedis, client: Any
) -> None:
    owned = _owned(Keys())
    _begin(client, owned)
    speaker, texts = Speaker(redis, owned), [""]
    for number in range(200):
        speaker.say(" word")
        texts.append(speaker.text)
        if number == 70:  # as after a failover: text and record are those of a moment before
            client.set(owned.keys.text, texts[32], px=_TTL_MS)
            client.hset(owned.keys.meta, mapping={"text_seq": 32, "text_chars": len(texts[32])})
    assert [result.text for result in await _text_at(redis_url, owned, 150)] == texts[151:]
    assert client.get(owned.keys.text).decode() == texts[int(client.hget(owned.keys.meta, "text_seq"))]


def test_what_a_stale_owner_keeps_changes_nothing(redis: SyncRedis, client: Any) -> None:
    owned = _owned(Keys())
    _begin(client, owned)
    speaker = Speaker(redis, owned)
    for _ in range(40):
        speaker.say(" word")
    kept = client.get(owned.keys.text)
    client.hset(owned.keys.meta, "epoch", 2)
    stale = speaker.log.keep(owned.keys, owned.epoch, speaker.seq)
    assert stale is not None
    assert redis.pipelined(0).call([stale, stale]) == [0, 0]
    assert client.get(owned.keys.text) == kept
    client.delete(owned.keys.meta, owned.keys.text)
    assert redis.pipelined(0).call([stale]) == [0]
    assert not client.exists(owned.keys.text)


async def test_to_keep_twice_is_to_keep_once(redis_url: str, redis: SyncRedis, client: Any) -> None:
    """A reply may be lost, and the pipeline with it is sent again."""
    owned = _owned(Keys())
    _begin(client, owned)
    log, connection = ResultLog(chars=0, kept_seq=0, kept_chars=0, kept_bytes=0), redis.pipelined(0)
    for seq, text in enumerate(("an", "an apple", "an apple à la"), 1):
        log.text_from(text)
        command = log.keep(owned.keys, 1, seq)
        assert command is not None
        assert connection.call([command, command, pack(b"PING")]) == [1, 1, b"PONG"]
        reader = AsyncRedis(RedisServers.parse((redis_url,)))
        assert await read_kept_text(reader, owned.keys) == KeptText(seq, text)
        await reader.close()
    assert log.keep(owned.keys, 1, 3) is None, "nothing is new"


def test_a_lost_stream_is_told_and_only_that_one(redis: SyncRedis, client: Any) -> None:
    writer = ResultWriter(redis, Keys())
    kept = _owned(Keys())
    gone = dataclasses.replace(kept, keys=Keys().stream(StreamId(2)))
    taken = dataclasses.replace(kept, keys=Keys().stream(StreamId(3)))
    refused = dataclasses.replace(kept, keys=Keys().stream(StreamId(4)))
    client.set(refused.keys.results, "no stream", px=_TTL_MS)
    for owned, entry_id in ((kept, "1-0"), (taken, "2-0")):
        client.xadd(owned.keys.results, {"k": "o", "a": 0, "d": "w", "q": 0}, id=entry_id)
        client.pexpire(owned.keys.results, _TTL_MS)
    batch = writer.batch()
    for owned in (gone, refused, kept, taken):
        batch.say(owned, IngressId("i1"), LineKind.PARTIAL, 1, 0, b"{}")
        batch.acknowledge(owned, [b"1-1"])
    for _ in range(2):  # again, as after a lost reply
        written = writer.write(batch)
        assert (written.lost, written.refused) == ([gone, taken], [refused])
    assert client.xlen(kept.keys.results) == 2
