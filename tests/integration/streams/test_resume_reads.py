"""What a resume and an adoption read and write in Redis, whatever else happens to the stream at that time."""

from __future__ import annotations

import asyncio
import dataclasses
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any, cast

import pytest

from common.entries import AudioEntry, IngressId, LineKind, StreamId
from common.errors import EntryError, ErrorCode, RedisUnavailable, Unavailable
from common.messages import Audio, Encoding, Resume
from common.options import StreamOptions
from common.phrases import Phrase
from common.redis.clients import AsyncRedis, RedisServers
from common.redis.keys import Keys, StreamKeys
from common.redis.scripts import text_of
from common.streams.assignments import NewStream, StreamDirectory
from common.streams.audio_tail import AudioTail, audio_tail
from common.streams.result_reader import KeptResults, Position, catch_up, kept_results
from ingress.backplane import Resumption
from ingress.streams.takeover import token_hash
from tests.backplanes import running_backplane
from tests.servers import raw_client
from tests.waiting import until

STREAM = StreamId(7)
KEYS: StreamKeys = Keys().stream(STREAM)
A, B = IngressId("i-a"), IngressId("i-b")


@asynccontextmanager
async def connected(url: str) -> AsyncIterator[tuple[AsyncRedis, StreamDirectory, Any]]:
    redis = AsyncRedis(RedisServers.parse((url,)))
    client = raw_client(url)
    try:
        yield redis, StreamDirectory(redis, Keys()), client
    finally:
        client.close()
        await redis.close()


def new_stream(stream: StreamId, ingress: IngressId) -> NewStream:
    return NewStream(stream, ingress, StreamOptions(resume=True), 16_000, "", 0, 60_000, 5_000)


def write_results(client: Any, *ids: str, size: int = 10) -> None:
    """Results with these ids; `epoch-0` is the notice of an owner, behind the results before it."""
    seq = 0
    for entry_id in ids:
        number = int(entry_id.split("-")[1])
        if number == 0:
            client.xadd(KEYS.results, {"k": "o", "a": 0, "d": "w", "q": seq}, id=entry_id)
        else:
            seq = number
            client.xadd(KEYS.results, {"k": "p", "a": 0, "d": "x" * size}, id=entry_id)
    client.pexpire(KEYS.results, 60_000)


async def test_an_adoption_takes_nothing_from_one_that_has_resumed_meanwhile(redis_url: str) -> None:
    async with connected(redis_url) as (_, directory, _client):
        await directory.create(new_stream(STREAM, A))
        record = await directory.read(STREAM)
        assert record is not None
        seen = (record.ingress, record.connection)
        assert await directory.attach(STREAM, B) == 2
        assert await directory.attach(STREAM, A, expected=seen) == 0
        record = await directory.read(STREAM)
        assert record is not None
        assert (record.ingress, record.connection) == (B, 2)
        # Nor where the client came back to the same name.
        assert await directory.attach(STREAM, A) == 3
        assert await directory.attach(STREAM, A, expected=seen) == 0
        assert await directory.attach(STREAM, A, expected=(A, 3)) == 4


class Listener:
    """A connection that has resumed the stream; it is only told that another one has."""

    undecoded_s = 0.0

    def __init__(self) -> None:
        self.num_taken = 0

    def on_taken(self) -> None:
        self.num_taken += 1


async def test_of_connections_that_resume_at_once_all_but_the_last_are_told(redis_url: str) -> None:
    """All of them have shown a secret that is good: it is until one of them confirms the next."""
    async with connected(redis_url) as (_, directory, client), running_backplane(redis_url, A) as backplane:
        new = new_stream(STREAM, B)
        await directory.create(dataclasses.replace(new, token_hash=token_hash("secret", "")))
        listeners: list[Any] = [Listener() for _ in range(3)]
        request = Resume(STREAM, "secret", 0, 0)
        resumptions: list[Resumption] = await asyncio.gather(
            *(backplane.resume(listener, request) for listener in listeners)
        )
        assert [listener.num_taken for listener in listeners] == [1, 1, 0]
        for number, resumption in enumerate(resumptions, 1):
            resumption.link.append(Audio(bytes(2 * number), Encoding.PCM16))
        await until(lambda: client.xrevrange(KEYS.audio, count=1)[0][1].get(b"p"), what="the audio")
        assert [len(fields[b"p"]) for _, fields in client.xrange(KEYS.audio) if b"p" in fields] == [6]


@pytest.mark.parametrize(("acked", "is_refused"), [(10, False), (11, True)])
async def test_a_stream_whose_decoded_audio_was_lost_is_not_resumed(
    redis_url: str, acked: int, is_refused: bool
) -> None:
    """Redis forgot its last moments, the ingress that had the audio is gone, and the client let go of it."""
    async with connected(redis_url) as (_, directory, client), running_backplane(redis_url, A) as backplane:
        new = new_stream(STREAM, B)
        await directory.create(dataclasses.replace(new, token_hash=token_hash("secret", "")))
        client.xadd(KEYS.audio, {"o": 0, "p": bytes(20)}, id="1-1")
        resuming = backplane.resume(cast(Any, Listener()), Resume(STREAM, "secret", 0, acked))
        if not is_refused:
            assert (await resuming).next_sample == 10
            return
        with pytest.raises(Unavailable, match="from sample 10 on was lost") as caught:
            await resuming
        assert caught.value.code is ErrorCode.RESUME_REFUSED
        # Its worker is told of the end, so that no slot is kept.
        await until(lambda: client.xrevrange(KEYS.audio, count=1)[0][1].get(b"x"), what="the final mark")


async def test_a_resume_reads_how_many_marks_wait_behind_the_audio(redis_url: str) -> None:
    """Phrases wait in Redis for later audio, however many connections have sent them."""
    async with connected(redis_url) as (redis, _, client):
        assert await audio_tail(redis, KEYS) == AudioTail(None, 0)
        number = 0

        def add(*, payload: bytes = b"", **more: Any) -> AudioEntry:
            nonlocal number
            number += 1
            entry = AudioEntry(b"1-%d" % number, 0, payload, **more)
            fields = entry.fields()
            client.xadd(KEYS.audio, dict(zip(fields[::2], fields[1::2], strict=True)), id=entry.entry_id)
            client.pexpire(KEYS.audio, 60_000)
            return entry

        last = add(payload=b"aa")
        assert await audio_tail(redis, KEYS) == AudioTail(last, 0)
        last = add(ingress=A)
        for num_marks in range(1, 140):
            if num_marks in (1, 7, 8, 9, 127, 128, 129):
                assert await audio_tail(redis, KEYS) == AudioTail(last, min(num_marks, 128))
            last = add(phrases=(Phrase("Zyrtec"),))
        last = add(payload=b"aa")
        assert await audio_tail(redis, KEYS) == AudioTail(last, 0)


async def test_streams_are_adopted_though_redis_is_away_when_they_are_looked_for(
    redis_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nobody else ends them: to the workers their ingress lives."""
    look, num_looks = StreamDirectory.streams_of, 0

    async def look_in_vain_first(directory: StreamDirectory, ingress: IngressId) -> list[StreamId]:
        nonlocal num_looks
        num_looks += 1
        if num_looks < 3:
            raise RedisUnavailable
        return await look(directory, ingress)

    monkeypatch.setattr(StreamDirectory, "streams_of", look_in_vain_first)
    async with connected(redis_url) as (_, directory, client):
        await directory.create(new_stream(STREAM, A))
        async with running_backplane(redis_url, A, adopts=True) as backplane:
            await until(lambda: client.hget(KEYS.meta, "connection") == b"2", what="the adoption")
            await until(lambda: backplane.num_streams == 1, what="its link")


async def test_a_stream_is_adopted_though_the_answer_to_that_was_lost(
    redis_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The command goes out once more, and finds that the stream is another connection's: its own."""
    execute, repeated = AsyncRedis.execute, False

    async def execute_twice(redis: AsyncRedis, server: int, *command: Any) -> Any:
        nonlocal repeated
        reply = await execute(redis, server, *command)
        if not repeated and command[1] == attach_text:
            repeated = True
            reply = await execute(redis, server, *command)
        return reply

    attach_text = text_of("streams/attach")
    monkeypatch.setattr(AsyncRedis, "execute", execute_twice)
    async with connected(redis_url) as (_, directory, client):
        await directory.create(new_stream(STREAM, A))
        async with running_backplane(redis_url, A, adopts=True) as backplane:
            await until(lambda: backplane.num_streams == 1, what="its link")
            assert repeated
            assert client.hget(KEYS.meta, "connection") == b"3"


async def test_the_streams_of_an_ingress_are_found_among_others(redis_url: str) -> None:
    async with connected(redis_url) as (_, directory, _client):
        for number in range(1, 8):
            await directory.create(new_stream(StreamId(number), A if number % 3 else B))
        assert sorted(await directory.streams_of(B)) == [3, 6]
        assert await directory.streams_of(IngressId("i-c")) == []


@pytest.mark.parametrize(
    ("ids", "last_seq", "found"),
    [
        ((), 0, None),
        (("1-0",), 0, (1, 0, 1, 0)),
        (("1-0", "1-1", "1-2", "1-3"), 0, (1, 3, 1, 0)),
        (("1-0", "1-1", "1-2", "1-3"), 2, (1, 3, 1, 2)),
        (("1-0", "1-1", "1-2", "1-3"), 3, (1, 3, 1, 3)),
        (("1-0", "1-1", "1-2", "1-3"), None, (1, 3, 1, 2)),
        (("1-4", "1-5"), 4, (4, 5, 1, 4)),  # what came before is no longer kept
        (("1-0", "1-1", "2-0", "2-2", "5-0", "5-3", "5-4"), 3, (1, 4, 5, 3)),
        (("1-0", "1-1", "2-0", "2-2", "5-0", "5-3", "5-4"), 2, (1, 4, 5, 2)),
        (("1-0", "1-1", "2-0", "2-2", "5-0", "5-3", "5-4"), 1, (1, 4, 2, 1)),
        (("1-0", "1-1", "2-0", "2-2", "5-0", "5-3", "5-4"), 0, (1, 4, 1, 0)),
        (("1-0", "1-1", "2-0", "5-0"), 1, (1, 1, 5, 1)),
        (("1-0", "1-1", "2-0", "5-0"), 0, (1, 1, 1, 0)),
        (("1-0", "1-1", "2-0", "5-0"), None, (1, 1, 1, 0)),
    ],
)
async def test_the_place_behind_a_result_is_found_over_all_owners(
    redis_url: str, ids: tuple[str, ...], last_seq: int | None, found: tuple[int, int, int, int] | None
) -> None:
    async with connected(redis_url) as (redis, _, client):
        write_results(client, *ids)
        kept = await kept_results(redis, KEYS, last_seq)
        if found is None:
            assert kept is None
            return
        first, last, epoch, seq = found
        assert kept == KeptResults(first, last, Position(KEYS, epoch, seq))
        (missed,) = await catch_up(redis, [kept.position])
        results = [line.seq for line in missed.lines if line.kind is not LineKind.OWNER]
        assert results == list(range(seq + 1, last + 1))


async def test_a_resume_reads_what_its_client_lacks_however_long_the_log_is(redis_url: str) -> None:
    async with connected(redis_url) as (redis, _, client):
        write_results(client, "1-0", *(f"1-{seq}" for seq in range(1, 257)), size=16_384)
        before = client.info("stats")["total_net_output_bytes"]
        kept = await kept_results(redis, KEYS, 254)
        assert kept is not None
        (missed,) = await catch_up(redis, [kept.position])
        assert [line.seq for line in missed.lines] == [255, 256]
        sent = client.info("stats")["total_net_output_bytes"] - before
        assert sent < 3 * 16_384 + 16_384  # two results, and INFO itself


async def test_what_was_missed_comes_in_bounded_parts(redis_url: str) -> None:
    async with connected(redis_url) as (redis, _, client):
        write_results(client, "1-0", *(f"1-{seq}" for seq in range(1, 151)))
        position, numbers, more = Position(KEYS, 1, 0), [], True
        while more:
            (missed,) = await catch_up(redis, [position])
            assert len(missed.lines) <= 64
            numbers += [line.seq for line in missed.lines]
            position, more = Position(KEYS, 1, numbers[-1]), missed.more
        assert numbers == list(range(1, 151))


async def test_results_that_cannot_be_read_are_told_of_their_stream_alone(redis_url: str) -> None:
    async with connected(redis_url) as (redis, _, client):
        write_results(client, "1-0", "1-1")
        broken, odd = Keys().stream(StreamId(8)), Keys().stream(StreamId(9))
        client.set(broken.results, "no stream", px=60_000)
        client.xadd(odd.results, {"k": "?", "a": 0, "d": "{}"}, id="1-1")
        client.pexpire(odd.results, 60_000)
        found = await catch_up(redis, [Position(keys, 0, 0) for keys in (broken, KEYS, odd)])
        assert [missed.error is None for missed in found] == [False, True, False]
        assert [line.seq for line in found[1].lines if line.kind is not LineKind.OWNER] == [1]
        with pytest.raises(EntryError):
            await kept_results(redis, broken, 0)
