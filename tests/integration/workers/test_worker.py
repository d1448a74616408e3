"""Worker processes with the null engine on real Redis servers: claim, batch, finish, fail one stream."""

from __future__ import annotations

import asyncio
import random
import signal
from contextlib import ExitStack
from pathlib import Path

import numpy as np
import pytest

from common.entries import LAYOUT_VERSION, AudioEntry, LineKind, WorkerId
from common.messages import Encoding
from common.options import StreamOptions
from common.redis.clients import RedisServers, SyncRedis, blocking_client
from common.redis.keys import FINISHED_STREAM_TTL_MS, Keys
from common.streams.claims import Claims
from tests.servers import keys_of_streams, raw_client
from tests.stream_client import ClientStream, expected_text, ingress_side, noise
from tests.waiting import until
from tests.worker_process import WorkerProcess


def assert_one_gapless_sequence(stream: ClientStream) -> None:
    results = [message for message in stream.sent if message["type"] == "result"]
    assert [result["seq"] for result in results] == list(range(1, len(results) + 1))
    assert [result["is_final"] for result in results] == [False] * (len(results) - 1) + [True]
    acks = [result["audio_ack_samples"] for result in results]
    assert acks == sorted(acks)


async def test_a_stream_is_claimed_decoded_and_cleaned_up(redis_url: str, tmp_path: Path) -> None:
    client = raw_client(redis_url)
    pcm = noise(3.1)
    with WorkerProcess(redis_url, "w1", tmp_path / "w1.log") as worker:
        worker.ready(client)
        async with ingress_side(redis_url) as ingress:
            stream = await ingress.open(options=StreamOptions(words=True))
            await ingress.feed(stream, pcm)
            await ingress.ended(stream)
            assert_one_gapless_sequence(stream)
            assert stream.text == expected_text(pcm)
            final = stream.sent[-1]
            assert final["audio_ack_samples"] == len(pcm) // 2
            assert final["turn_detection"] == "end_of_utterance"
            assert " ".join(word["word"] for sent in stream.sent for word in sent["words"]) == stream.text
            assert stream.lines[0].kind is LineKind.OWNER
            kinds = [line.kind for line in stream.lines if line.kind is not LineKind.OWNER]
            assert kinds == [LineKind.TURN, *[LineKind.PARTIAL] * (len(kinds) - 2), LineKind.FINAL]

            await until(lambda: client.xlen("px:{0}:new") == 0, what="the end of the assignment")
            left = keys_of_streams(client)
            kept = [f"px:{{0}}:{stream.stream}:{key}" for key in ("m", "r", "t")]
            assert left in (kept[:2], kept)  # the text is kept where a snapshot has fallen due
            for name in left:
                assert 0 < client.pttl(name) <= FINISHED_STREAM_TTL_MS
            await ingress.directory.remove(stream.keys)
            await ingress.admission.release(stream.stream)
            assert keys_of_streams(client) == []
            assert client.zcard("px:{0}:adm") == 0


async def test_the_text_does_not_depend_on_batch_mates_messages_or_workers(
    redis_url: str, tmp_path: Path
) -> None:
    client = raw_client(redis_url)
    chance = random.Random(1)
    with (
        WorkerProcess(redis_url, "w1", tmp_path / "w1.log", worker_max_streams=15) as first,
        WorkerProcess(redis_url, "w2", tmp_path / "w2.log", worker_max_streams=15) as second,
    ):
        first.ready(client)
        second.ready(client)
        async with ingress_side(redis_url) as ingress:
            audio = {}
            for seed in range(20):  # more than one of them has slots
                stream = await ingress.open()
                audio[stream] = noise(1.0 + 0.37 * (seed % 7), seed)
            left = dict.fromkeys(audio, 0)
            while left:
                stream = chance.choice(list(left))
                size = 2 * chance.randint(160, 32_000)
                at = left[stream]
                stream.append(audio[stream][at : at + size])
                left[stream] = at + size
                if at + size >= len(audio[stream]):
                    stream.append(b"", final=True)
                    del left[stream]
                await stream.appender.room(64 * 1024)
            await ingress.ended(*audio)
            for stream, pcm in audio.items():
                assert_one_gapless_sequence(stream)
                assert stream.text == expected_text(pcm)
            owners = {owner for stream in audio for owner in _owners(stream)}
            assert owners == {b"w1", b"w2"}, "both workers had a part"


def _owners(stream: ClientStream) -> set[bytes]:
    notices = [line.body for line in stream.lines if line.kind is LineKind.OWNER]
    return {worker for worker in (b"w1", b"w2") for notice in notices if worker in notice}


@pytest.mark.parametrize("chunk_ms", [4_080, 10_000])
async def test_the_longest_chunks_fill(redis_url: str, tmp_path: Path, chunk_ms: int) -> None:
    """More audio than fits is sent at once: a chunk comes before the end of the stream does."""
    with WorkerProcess(redis_url, "w1", tmp_path / "w1.log", chunk_ms=chunk_ms) as worker:
        worker.ready(raw_client(redis_url))
        async with ingress_side(redis_url) as ingress:
            stream, pcm = await ingress.open(), noise(2.5 * chunk_ms / 1000)
            for at in range(0, len(pcm), 32_000):
                stream.append(pcm[at : at + 32_000])
            expected = expected_text(pcm[: 2 * 32 * chunk_ms], chunk_ms)
            await until(lambda: stream.text == expected[:4], what="both whole chunks")
            stream.append(b"", final=True)
            await ingress.ended(stream)
            assert stream.text == expected_text(pcm, chunk_ms)


async def test_an_empty_stream_ends_with_one_empty_final(redis_url: str, tmp_path: Path) -> None:
    with WorkerProcess(redis_url, "w1", tmp_path / "w1.log") as worker:
        worker.ready(raw_client(redis_url))
        async with ingress_side(redis_url) as ingress:
            stream = await ingress.open()
            stream.append(b"", final=True)
            await ingress.ended(stream)
            assert [(sent["is_final"], sent["text"], sent["seq"]) for sent in stream.sent] == [(True, "", 1)]


@pytest.mark.parametrize("rate", [8000, 44_100])
async def test_other_rates_are_resampled_and_acknowledged_in_the_clients_samples(
    redis_url: str, tmp_path: Path, rate: int
) -> None:
    pcm = noise(2.5, rate=rate)
    with WorkerProcess(redis_url, "w1", tmp_path / "w1.log") as worker:
        worker.ready(raw_client(redis_url))
        async with ingress_side(redis_url) as ingress:
            whole = await ingress.open(sample_rate=rate)
            pieces = await ingress.open(sample_rate=rate)
            whole.append(pcm, final=True)
            await ingress.feed(pieces, pcm, message_bytes=2 * 333)
            await ingress.ended(whole, pieces)
            assert whole.text == pieces.text
            for stream in (whole, pieces):
                assert_one_gapless_sequence(stream)
                assert stream.sent[-1]["audio_ack_samples"] == len(pcm) // 2
                assert stream.sent[0]["audio_ack_samples"] == 2560 * rate // 16_000


async def test_f32_gives_the_text_of_the_same_pcm16(redis_url: str, tmp_path: Path) -> None:
    pcm = noise(1.0)
    as_float = (np.frombuffer(pcm, "<i2") * np.float32(1 / 32768)).astype("<f4").tobytes()
    with WorkerProcess(redis_url, "w1", tmp_path / "w1.log") as worker:
        worker.ready(raw_client(redis_url))
        async with ingress_side(redis_url) as ingress:
            stream = await ingress.open()
            half = len(pcm) // 2
            stream.append(pcm[:half])
            stream.append(as_float[2 * half :], final=True, encoding=Encoding.F32)
            await ingress.ended(stream)
            assert stream.text == expected_text(pcm)


async def test_bad_audio_ends_its_stream_and_no_other(redis_url: str, tmp_path: Path) -> None:
    client = raw_client(redis_url)
    pcm = noise(2.0)
    with WorkerProcess(redis_url, "w1", tmp_path / "w1.log") as worker:
        worker.ready(client)
        async with ingress_side(redis_url) as ingress:
            good, bad, holed = [await ingress.open() for _ in range(3)]
            good.append(pcm[: len(pcm) // 2])
            bad.append(np.array([0.0, np.nan, 0.0], "<f4").tobytes(), encoding=Encoding.F32)
            hole = AudioEntry(b"1-7", first_sample=999, payload=b"\0\0")
            client.xadd(holed.keys.audio, _pairs(hole), id=hole.entry_id)
            await ingress.ended(bad, holed)
            assert [sent["code"] for sent in bad.sent] == ["bad_samples"]
            assert [sent["code"] for sent in holed.sent] == ["stream_lost"]
            good.append(pcm[len(pcm) // 2 :], final=True)
            await ingress.ended(good)
            assert good.text == expected_text(pcm)
            await until(lambda: client.xlen("px:{0}:new") == 0, what="the end of the assignments")
            assert client.exists(bad.keys.audio, holed.keys.audio) == 0
        assert worker.running


def _pairs(entry: AudioEntry) -> dict[bytes, bytes]:
    flat = [bytes(part) for part in entry.fields()]
    return dict(zip(flat[::2], flat[1::2], strict=True))


async def test_a_worker_claims_no_more_than_its_slots(redis_url: str, tmp_path: Path) -> None:
    client = raw_client(redis_url)
    pcm = noise(0.5)
    with (
        WorkerProcess(redis_url, "w1", tmp_path / "w1.log", worker_max_streams=2) as first,
        WorkerProcess(redis_url, "w2", tmp_path / "w2.log", worker_max_streams=1) as second,
    ):
        first.ready(client)
        second.ready(client)
        async with ingress_side(redis_url) as ingress:
            streams = [await ingress.open() for _ in range(3)]
            await until(lambda: all(stream.appender.owner for stream in streams), what="all owners")
            owners = [stream.appender.owner for stream in streams]
            assert sorted(str(owner) for owner in owners) == ["w1", "w1", "w2"]
            for stream in streams:
                await ingress.feed(stream, pcm)
            await ingress.ended(*streams)
            assert [stream.text for stream in streams] == [expected_text(pcm)] * 3


async def test_a_worker_that_drains_finishes_what_it_has_and_takes_nothing_new(
    redis_url: str, tmp_path: Path
) -> None:
    client = raw_client(redis_url)
    pcm = noise(2.0)
    with WorkerProcess(redis_url, "w1", tmp_path / "w1.log", drain_timeout_s=300) as first:
        first.ready(client)
        async with ingress_side(redis_url) as ingress:
            stream = await ingress.open()
            stream.append(pcm[: len(pcm) // 2])
            await until(lambda: stream.seq > 0, what="a result")
            first.send(signal.SIGTERM)
            await until(lambda: "draining" in first.log_text(), what="the drain")
            with WorkerProcess(redis_url, "w2", tmp_path / "w2.log") as second:
                await asyncio.to_thread(second.ready, client)
                later = await ingress.open()
                stream.append(pcm[len(pcm) // 2 :], final=True)
                await ingress.feed(later, pcm)
                await ingress.ended(stream, later)
                assert await asyncio.to_thread(first.wait) == 0
                assert (stream.text, later.text) == (expected_text(pcm), expected_text(pcm))
                assert (stream.epoch, _owners(later)) == (1, {b"w2"})
                assert client.zscore("px:{0}:workers", "w1") is None
                assert [c["name"] for c in client.xinfo_consumers("px:{0}:new", "workers")] == [b"w2"]


async def test_a_worker_at_its_deadline_hands_its_streams_over(redis_url: str, tmp_path: Path) -> None:
    client = raw_client(redis_url)
    pcm = noise(6.0)
    with (
        ExitStack() as stack,
        WorkerProcess(redis_url, "w1", tmp_path / "w1.log", drain_timeout_s=0) as first,
    ):
        first.ready(client)
        async with ingress_side(redis_url) as ingress:
            stream = await ingress.open()
            stream.append(pcm[: len(pcm) // 2])
            await until(lambda: stream.seq >= 18, what="results")
            second = WorkerProcess(redis_url, "w2", tmp_path / "w2.log")
            await asyncio.to_thread(stack.enter_context(second).ready, client)
            first.send(signal.SIGTERM)
            await until(lambda: stream.epoch == 2, what="the hand-over")
            meta = client.hgetall(f"px:{{0}}:{stream.stream}:m")
            assert int(meta[b"ck_samples"]) == 18 * 2560, "the new owner goes on where the old one was"
            stream.append(pcm[len(pcm) // 2 :], final=True)
            await ingress.ended(stream)
            assert_one_gapless_sequence(stream)
            assert stream.text == expected_text(pcm)
            # Nothing was decoded twice: each result was published once.
            seqs = [line.seq for line in stream.lines if line.kind in (LineKind.PARTIAL, LineKind.TURN)]
            assert seqs == sorted(set(seqs))


def test_a_worker_of_another_layout_refuses_to_start(redis_url: str, tmp_path: Path) -> None:
    client = raw_client(redis_url)
    client.hset("px:{0}:conf", mapping={"layout_version": 99, "shards": 1})
    client.pexpire("px:{0}:conf", 60_000)
    with WorkerProcess(redis_url, "w1", tmp_path / "w1.log") as worker:
        assert worker.wait() == 2
        assert "the running cluster writes 99" in worker.log_text()


async def test_shards_share_the_streams(redis_url: str, tmp_path: Path) -> None:
    client = raw_client(redis_url)
    pcm = noise(1.0)
    with WorkerProcess(redis_url, "w1", tmp_path / "w1.log", redis_shards=3) as worker:
        worker.ready(client)
        async with ingress_side(redis_url, shards=3) as ingress:
            streams = [await ingress.open() for _ in range(6)]
            assert {stream.keys.shard for stream in streams} == {0, 1, 2}
            for stream in streams:
                await ingress.feed(stream, pcm)
            await ingress.ended(*streams)
            assert [stream.text for stream in streams] == [expected_text(pcm)] * 6

            async def nothing_is_left() -> bool:
                return bool((await ingress.status())["scheduler"] == {"active": 0, "waiting": 0})

            await until(nothing_is_left, what="the end of the assignments of all shards")


def test_finish_of_a_stream_that_left_redis_takes_its_assignment_away(redis_url: str) -> None:
    client = raw_client(redis_url)
    redis = SyncRedis(RedisServers.parse((redis_url,)))
    keys = Keys()
    claims = Claims(redis, keys, WorkerId("w1"))
    claims.prepare()
    client.xadd("px:{0}:new", {"sid": 5, "v": LAYOUT_VERSION})
    blocking = blocking_client(redis.servers, 0, 100)
    entries = claims.wait(blocking, [0], 5, 10)
    blocking.close()
    assert [entry.stream for entry in entries] == [5]
    assert claims.open(entries[:1]) == [None]
    assert client.xlen("px:{0}:new") == 0
    assert claims.owners()[WorkerId("w1")] == 0
    redis.close()
