"""Workers die, freeze and hang in the middle of streams: nothing is lost, repeated or reordered."""

from __future__ import annotations

import asyncio
import signal
import wave
from contextlib import ExitStack
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from common.entries import IngressId, LineKind, WorkerId
from common.presence.leases import IngressPresence, IngressReport, WorkerLease
from common.redis.clients import AsyncRedis, PipelinedCommands, RedisServers
from common.redis.keys import Keys
from common.redis.scripts import FORGOTTEN_NUMBERS
from tests.altered.faulty_worker import CURSED_SAMPLES
from tests.servers import raw_client
from tests.service_process import ROOT
from tests.stream_client import ClientStream, IngressSide, expected_text, ingress_side, noise
from tests.waiting import until
from tests.worker_process import SHORT_LEASE_MS, WorkerProcess


def assert_gapless(stream: ClientStream) -> None:
    results = [message for message in stream.sent if message["type"] == "result"]
    assert [result["seq"] for result in results] == list(range(1, len(results) + 1))
    assert [result["is_final"] for result in results] == [False] * (len(results) - 1) + [True]
    acks = [result["audio_ack_samples"] for result in results]
    assert acks == sorted(acks)


async def worker(stack: ExitStack, url: str, folder: Path, name: str, **flags: object) -> WorkerProcess:
    process = stack.enter_context(WorkerProcess(url, name, folder / f"{name}.log", **flags))  # type: ignore[arg-type]
    # Not in this thread: the ingress side must go on beating while a worker starts.
    return await asyncio.to_thread(process.ready, raw_client(url))


async def halfway(ingress: IngressSide, pcm: bytes, count: int = 3, **options: Any) -> list[ClientStream]:
    """Streams that have some results, and more audio on the way."""
    streams = [await ingress.open(**options) for _ in range(count)]
    for stream in streams:
        stream.append(pcm[: len(pcm) // 2])
    await until(lambda: all(stream.seq >= 4 for stream in streams), what="results")
    return streams


async def finish(ingress: IngressSide, streams: list[ClientStream], pcm: bytes) -> None:
    for stream in streams:
        stream.append(pcm[len(pcm) // 2 :], final=True)
    await ingress.ended(*streams)


async def test_an_owner_is_beyond_all_that_redis_may_have_forgotten(redis_url: str, tmp_path: Path) -> None:
    """A server that came back without its last moments may lack owners that still write."""
    client, pcm = raw_client(redis_url), noise(4.0)
    with ExitStack() as stack:
        first = await worker(stack, redis_url, tmp_path, "w1", lease_ms=SHORT_LEASE_MS)
        async with ingress_side(redis_url) as ingress:
            streams = await halfway(ingress, pcm)
            first.send(signal.SIGKILL)
            for stream in streams:
                assert client.hget(stream.keys.meta, "run") == client.info("server")["run_id"].encode()
                client.hset(stream.keys.meta, "run", "another")
            await worker(stack, redis_url, tmp_path, "w2")
            await finish(ingress, streams, pcm)
            for stream in streams:
                assert_gapless(stream)
                assert stream.epoch == 1 + FORGOTTEN_NUMBERS
                assert stream.text == expected_text(pcm)


@pytest.mark.parametrize("rate", [16_000, 44_100])
async def test_another_worker_goes_on_after_a_sigkill(redis_url: str, tmp_path: Path, rate: int) -> None:
    pcm = noise(4.0, rate=rate)
    with ExitStack() as stack:
        first = await worker(stack, redis_url, tmp_path, "w1", replay_seconds=10, lease_ms=SHORT_LEASE_MS)
        async with ingress_side(redis_url) as ingress:
            undisturbed = await ingress.open(sample_rate=rate)
            await ingress.feed(undisturbed, pcm)
            await ingress.ended(undisturbed)

            streams = await halfway(ingress, pcm, sample_rate=rate)
            await worker(stack, redis_url, tmp_path, "w2")
            first.send(signal.SIGKILL)
            await finish(ingress, streams, pcm)
            for stream in streams:
                assert_gapless(stream)
                assert stream.epoch == 2
                assert stream.sent == [
                    {**sent, "audio_ack_samples": got["audio_ack_samples"]}
                    for sent, got in zip(undisturbed.sent, stream.sent, strict=True)
                ]
                if rate == 16_000:
                    assert stream.text == expected_text(pcm)
            client = raw_client(redis_url)
            await until(lambda: client.zscore("px:{0}:workers", "w1") is None, what="the dead one's end")
            assert [c["name"] for c in client.xinfo_consumers("px:{0}:new", "workers")] == [b"w2"]


async def test_assignments_of_streams_that_last_for_days_are_kept(redis_url: str, tmp_path: Path) -> None:
    """Without them no worker could take such a stream over, at the latest in the next upgrade."""
    client = raw_client(redis_url)
    with ExitStack() as stack:
        await worker(stack, redis_url, tmp_path, "w1")
        async with ingress_side(redis_url) as ingress:
            await halfway(ingress, noise(4.0), count=1)
            client.pexpire("px:{0}:new", 60_000)  # as if no stream had begun for nearly a day
            await until(lambda: client.pttl("px:{0}:new") > 3_600_000, 50, "a longer life")


async def test_streams_of_a_dead_worker_that_no_register_knows_go_on(redis_url: str, tmp_path: Path) -> None:
    """The register is on the first of several servers, which may come back empty when a worker dies."""
    client, pcm = raw_client(redis_url), noise(4.0)
    with ExitStack() as stack:
        first = await worker(stack, redis_url, tmp_path, "w1", lease_ms=SHORT_LEASE_MS)
        async with ingress_side(redis_url) as ingress:
            streams = await halfway(ingress, pcm)
            first.send(signal.SIGKILL)
            first.wait()
            client.zrem("px:{0}:workers", "w1")
            await worker(stack, redis_url, tmp_path, "w2", lease_ms=SHORT_LEASE_MS)
            await finish(ingress, streams, pcm)
            for stream in streams:
                assert_gapless(stream)
                assert stream.epoch == 2
                assert stream.text == expected_text(pcm)
            await until(lambda: client.zscore("px:{0}:workers", "w1") is None, what="the dead one's end")


async def test_a_replay_begins_at_the_checkpoint_and_the_audio_kept_is_bounded(
    redis_url: str, tmp_path: Path
) -> None:
    client = raw_client(redis_url)
    pcm = noise(60.0)
    with ExitStack() as stack:
        # Checkpoints every 5 s of audio: the smallest that the flag takes.
        first = await worker(stack, redis_url, tmp_path, "w1", replay_seconds=10, lease_ms=SHORT_LEASE_MS)
        async with ingress_side(redis_url) as ingress:
            stream = await ingress.open()
            half = 5120 * (len(pcm) // 2 // 5120)
            for at in range(0, half, 5120):
                stream.append(pcm[at : at + 5120])
                # At most two seconds in flight, so that what is kept is the checkpoint's doing.
                wanted = at // 5120 - 12
                await until(partial(lambda seq: stream.seq >= seq, wanted), what="results")
            await until(lambda: stream.seq >= half // 5120 - 1, what="results")
            await until(
                lambda: client.xlen(stream.keys.audio) * 0.16 < 5 + 2 + 0.5, what="the end of old audio"
            )
            # Half of the 60 s, a spacing of 5 s, and whole chunks.
            await until(
                lambda: int(client.hget(stream.keys.meta, "ck_samples")) >= (30 - 5.5) * 16_000,
                what="the checkpoint",
            )
            await worker(stack, redis_url, tmp_path, "w2")
            first.send(signal.SIGKILL)
            stream.append(pcm[half:], final=True)
            await ingress.ended(stream)
            assert_gapless(stream)
            assert stream.text == expected_text(pcm)


async def test_two_deaths_in_a_row(redis_url: str, tmp_path: Path) -> None:
    pcm = noise(6.0)
    with ExitStack() as stack:
        first = await worker(stack, redis_url, tmp_path, "w1", lease_ms=SHORT_LEASE_MS)
        async with ingress_side(redis_url) as ingress:
            (stream,) = await halfway(ingress, pcm, count=1)
            # The second dies before it has said anything: its epoch must not lose the last seq.
            slow = {"null_step_ms": 60_000, "step_timeout_ms": 600_000}
            second = await worker(stack, redis_url, tmp_path, "w2", lease_ms=SHORT_LEASE_MS, **slow)
            first.send(signal.SIGKILL)
            await until(lambda: stream.epoch == 2, what="the first takeover")
            await worker(stack, redis_url, tmp_path, "w3")
            second.send(signal.SIGKILL)
            await finish(ingress, [stream], pcm)
            assert_gapless(stream)
            assert stream.epoch == 3
            assert stream.text == expected_text(pcm)


async def test_a_frozen_worker_that_wakes_up_is_fenced_off(redis_url: str, tmp_path: Path) -> None:
    client = raw_client(redis_url)
    pcm = noise(4.0)
    with ExitStack() as stack:
        first = await worker(stack, redis_url, tmp_path, "w1", lease_ms=SHORT_LEASE_MS)
        async with ingress_side(redis_url) as ingress:
            streams = await halfway(ingress, pcm)
            second = await worker(stack, redis_url, tmp_path, "w2")
            first.send(signal.SIGSTOP)
            await until(lambda: all(stream.epoch == 2 for stream in streams), what="the takeover")
            for stream in streams[:2]:
                stream.append(pcm[len(pcm) // 2 :], final=True)
            await ingress.ended(*streams[:2])
            # It wakes with two of its streams over and one still going on elsewhere.
            first.send(signal.SIGCONT)
            await until(lambda: first.log_text().count("another worker has it") == 3, what="its finding out")
            await until(lambda: client.hget("px:{0}:w:w1", "owned") == b"0", what="its letting go")
            await finish(ingress, [streams[2]], pcm)
            for stream in streams:
                assert_gapless(stream)
                assert stream.text == expected_text(pcm)
                entries = client.xrange(stream.keys.results)
                ids = [tuple(int(part) for part in entry_id.split(b"-")) for entry_id, _ in entries]
                assert ids == sorted(ids)
                assert max(seq for epoch, seq in ids if epoch == 1) < min(
                    seq for epoch, seq in ids[1:] if epoch == 2 and seq
                )
            # It is of use again: with the other one gone, it takes the next stream.
            assert first.running
            second.send(signal.SIGTERM)
            assert await asyncio.to_thread(second.wait) == 0
            again = await ingress.open()
            again.append(pcm, final=True)
            await ingress.ended(again)
            assert again.text == expected_text(pcm)


async def test_what_a_stale_worker_publishes_does_not_reach_a_client(redis_url: str, tmp_path: Path) -> None:
    """Frozen between two steps, with audio read and not decoded: it decodes it when it wakes up."""
    pcm = noise(8.0)
    with ExitStack() as stack:
        first = await worker(stack, redis_url, tmp_path, "w1", null_step_ms=150, lease_ms=SHORT_LEASE_MS)
        async with ingress_side(redis_url) as ingress:
            stream = await ingress.open()
            stream.append(pcm)
            await until(lambda: stream.seq >= 1, what="a result")
            first.send(signal.SIGSTOP)
            await worker(stack, redis_url, tmp_path, "w2")
            await until(lambda: stream.seq >= 49, what="the other's results")
            assert stream.epoch == 2
            first.send(signal.SIGCONT)
            await until(lambda: "another worker has it" in first.log_text(), what="its finding out")
            stream.append(b"", final=True)
            await ingress.ended(stream)
            assert_gapless(stream)
            assert stream.text == expected_text(pcm)


async def test_a_hung_engine_loses_its_streams_and_ends_its_process(redis_url: str, tmp_path: Path) -> None:
    pcm = noise(2.0)
    with ExitStack() as stack:
        flags = {"null_step_ms": 60_000, "step_timeout_ms": 500}
        hung = await worker(stack, redis_url, tmp_path, "w1", lease_ms=SHORT_LEASE_MS, **flags)
        async with ingress_side(redis_url) as ingress:
            stream = await ingress.open()
            stream.append(pcm, final=True)
            await until(lambda: stream.appender.owner, what="an owner")
            await worker(stack, redis_url, tmp_path, "w2")
            assert await asyncio.to_thread(hung.wait) == 70
            assert "hung" in hung.log_text()
            await ingress.ended(stream)
            assert_gapless(stream)
            assert stream.text == expected_text(pcm)


async def test_a_worker_restarted_under_its_name_takes_its_streams_back(
    redis_url: str, tmp_path: Path
) -> None:
    pcm = noise(4.0)
    with ExitStack() as stack:
        first = await worker(stack, redis_url, tmp_path, "w1", lease_ms=600_000)
        async with ingress_side(redis_url) as ingress:
            streams = await halfway(ingress, pcm)
            first.send(signal.SIGKILL)
            first.wait()
            # Its lease would hold for ten minutes; the same name need not wait for that.
            await worker(stack, redis_url, tmp_path, "w1", lease_ms=600_000)
            await finish(ingress, streams, pcm)
            for stream in streams:
                assert_gapless(stream)
                assert stream.text == expected_text(pcm)


async def test_a_stream_whose_ingress_died_is_ended_and_cleaned_up(redis_url: str, tmp_path: Path) -> None:
    client = raw_client(redis_url)
    pcm = noise(1.0)
    with ExitStack() as stack:
        await worker(stack, redis_url, tmp_path, "w1")
        async with ingress_side(redis_url, ingress="i-dead", heartbeat_ms=1000) as ingress:
            stream = await ingress.open()
            stream.append(pcm)
            await until(lambda: stream.seq >= 5, what="results")
        # Four heartbeats of a second, and what the worker takes to see it twice.
        await until(lambda: client.xlen("px:{0}:new") == 0, what="the end of the stream")
        kind = client.xrevrange(stream.keys.results, count=1)[0][1][b"k"]
        assert kind == LineKind.FINAL.value
        assert not client.exists(stream.keys.audio)
        assert 0 < client.pttl(stream.keys.meta) <= 30_000


async def test_a_stream_is_ended_whose_next_ingress_died_before_it_appended(
    redis_url: str, tmp_path: Path
) -> None:
    """No entry of its audio names that ingress, the one before lives, and it has let the stream go."""
    client = raw_client(redis_url)
    with ExitStack() as stack:
        await worker(stack, redis_url, tmp_path, "w1")
        async with ingress_side(redis_url, stream_ttl_ms=12_000) as ingress:
            stream, kept = [await ingress.open() for _ in range(2)]
            for one in (stream, kept):
                one.append(noise(1.0))
            await until(lambda: stream.seq >= 5 and kept.seq >= 5, what="results")
            assert await ingress.directory.attach(stream.stream, IngressId("i-dead")) == 2
            # A quarter of the time to live, and what the worker takes to see it twice.
            await until(lambda: client.xlen("px:{0}:new") == 1, what="the end of the stream")
            assert client.hget(stream.keys.meta, "finished") == b"1"
            kept.append(b"", final=True)
            await ingress.ended(kept)


def _time_ms(client: Any) -> int:
    seconds, microseconds = client.time()
    return int(seconds) * 1000 + int(microseconds) // 1000


async def test_an_ingress_counts_as_gone_when_its_heartbeats_stay_out(redis_url: str) -> None:
    client = raw_client(redis_url)
    redis = AsyncRedis(RedisServers.parse((redis_url,)))
    lease = WorkerLease(client, Keys(), WorkerId("w1"), 1000)
    there, unknown = IngressId("i-1"), IngressId("i-2")
    for heartbeat_ms, alive_ms in ((100, 2_000), (1_000, 4_000), (15_000, 60_000)):
        presence = IngressPresence(PipelinedCommands(redis, 0), Keys(), there, heartbeat_ms)
        before_ms = _time_ms(client)
        await presence.beat(IngressReport(0, 0))
        until_ms = client.zscore("px:{0}:ingresses", there)
        assert before_ms + alive_ms <= until_ms <= _time_ms(client) + alive_ms
        # Its hash outlasts it; one that is gone by now tells nothing.
        assert client.pexpiretime("px:{0}:i:i-1") >= until_ms or _time_ms(client) > until_ms
    assert lease.missing_ingresses([there, unknown]) == {unknown}
    assert lease.missing_ingresses([]) == set()
    client.zadd("px:{0}:ingresses", {there: _time_ms(client)})
    assert lease.missing_ingresses([there, unknown]) == {there, unknown}
    await redis.close()


async def test_an_engine_that_raises_ends_its_worker_and_no_stream(redis_url: str, tmp_path: Path) -> None:
    pcm = bytearray(noise(4.0))
    half = len(pcm) // 2
    pcm[half : half + 2] = (-32_768).to_bytes(2, "little", signed=True)
    with ExitStack() as stack:
        first = await worker(
            stack, redis_url, tmp_path, "w1", module="tests.altered.faulty_worker", lease_ms=600_000
        )
        async with ingress_side(redis_url) as ingress:
            streams = await halfway(ingress, bytes(pcm))
            await worker(stack, redis_url, tmp_path, "w2")
            streams[0].append(bytes(pcm[half:]), final=True)
            assert await asyncio.to_thread(first.wait) == 1
            assert "the device is lost" in first.log_text()
            # Its lease of ten minutes was given back: nobody waited for it.
            for stream in streams[1:]:
                stream.append(bytes(pcm[half:]), final=True)
            await ingress.ended(*streams)
            for stream in streams:
                assert_gapless(stream)
                assert stream.text == expected_text(bytes(pcm))


async def test_audio_that_breaks_its_conversion_ends_its_stream_alone(redis_url: str, tmp_path: Path) -> None:
    pcm = noise(2.0)
    with ExitStack() as stack:
        first = await worker(stack, redis_url, tmp_path, "w1", module="tests.altered.faulty_worker")
        async with ingress_side(redis_url) as ingress:
            streams = await halfway(ingress, pcm)
            streams[1].append(b"\0\0" * CURSED_SAMPLES)
            for stream in (streams[0], streams[2]):
                stream.append(pcm[len(pcm) // 2 :], final=True)
            await ingress.ended(*streams)
            assert streams[1].sent[-1]["code"] == "worker_failed"
            assert [streams[0].text, streams[2].text] == [expected_text(pcm)] * 2
        assert first.running


async def test_a_worker_keeps_the_keys_of_its_streams_alive(redis_url: str, tmp_path: Path) -> None:
    """Also when the ingress, which does it too, is gone and the stream waits for a resume."""
    client = raw_client(redis_url)
    with ExitStack() as stack:
        await worker(stack, redis_url, tmp_path, "w1")
        async with ingress_side(redis_url, ingress="i-gone", stream_ttl_ms=8000) as ingress:
            stream = await ingress.open(grace_ms=60_000)
            stream.append(noise(0.5))
            await until(lambda: stream.seq >= 3, what="results")
        for _ in range(3):
            await until(lambda: client.pttl(stream.keys.meta) < 6500, what="time passing")
            await until(lambda: client.pttl(stream.keys.meta) > 7000, what="a renewal")
        assert client.exists(stream.keys.audio, stream.keys.results) == 2


@pytest.mark.slow
async def test_the_tiny_model_goes_on_after_a_sigkill(redis_url: str, tmp_path: Path) -> None:
    with wave.open(str(ROOT / "parakeet" / "recordings" / "goforward.wav")) as recording:
        pcm = recording.readframes(recording.getnframes())
    flags = {"backend": "native", "model_size": "tiny", "device": "cpu", "num_threads": 1}
    with ExitStack() as stack:
        first = await worker(
            stack,
            redis_url,
            tmp_path,
            "w1",
            **flags,
            worker_max_streams=4,
            replay_seconds=10,
            lease_ms=SHORT_LEASE_MS,
        )
        async with ingress_side(redis_url) as ingress:
            undisturbed = await ingress.open()
            undisturbed.append(pcm, final=True)
            await ingress.ended(undisturbed)
            assert undisturbed.text == "go forward ten meters"
            stream = await ingress.open()
            half = len(pcm) // 4 * 2
            stream.append(pcm[:half])
            await until(lambda: stream.seq >= 1, what="a result")
            await worker(stack, redis_url, tmp_path, "w2", **flags, worker_max_streams=4)
            first.send(signal.SIGKILL)
            stream.append(pcm[half:], final=True)
            await ingress.ended(stream)
            assert_gapless(stream)
            assert stream.epoch == 2
            assert [sent["text"] for sent in stream.sent] == [sent["text"] for sent in undisturbed.sent]
            assert [sent["token_ids"] for sent in stream.sent] == [
                sent["token_ids"] for sent in undisturbed.sent
            ]


@pytest.mark.parametrize("rate", [16_000, 44_100])
async def test_a_takeover_without_the_state_hears_the_audio_before_it_again(
    redis_url: str, tmp_path: Path, rate: int
) -> None:
    """More than the audio that the engine wants to hear again goes by, so that it is not all there is."""
    client, pcm = raw_client(redis_url), noise(190.0, rate=rate)
    flags = {"replay_seconds": 10, "snapshots": "audio"}
    with ExitStack() as stack:
        first = await worker(stack, redis_url, tmp_path, "w1", **flags, lease_ms=SHORT_LEASE_MS)
        async with ingress_side(redis_url) as ingress:
            stream = await ingress.open(sample_rate=rate)
            half, second = 2 * (len(pcm) * 9 // 20), 2 * rate
            for at in range(0, half, second):
                stream.append(pcm[at : min(at + second, half)])
                done_s = at // second
                await until(partial(lambda seq: stream.seq >= seq, 6 * (done_s - 2)), what="results")
            await until(lambda: stream.seq >= 6 * (half // second) - 3, what="results")
            reach = int(client.hget(stream.keys.meta, "ck_reach"))
            assert 149 * 16_000 < reach < 151 * 16_000
            # The audio in reach, a spacing of 5 s, and 11 s more where it is resampled.
            most_s = reach / 16_000 + 5 + 3 + (0 if rate == 16_000 else 11)

            def kept_s() -> float:
                return sum(len(fields[b"p"]) for _, fields in client.xrange(stream.keys.audio)) / second

            await until(lambda: kept_s() < most_s, what="the end of old audio")
            assert kept_s() > reach / 16_000
            assert len(client.lindex(stream.keys.snapshot, 0)) < 20_000
            slow = {"null_step_ms": 50, "drain_timeout_s": 0}
            second_worker = await worker(stack, redis_url, tmp_path, "w2", **flags, **slow)
            first.send(signal.SIGKILL)
            await until(lambda: stream.epoch == 2, what="the takeover")
            # One that is handed over before it has heard all of it again keeps its checkpoint.
            await worker(stack, redis_url, tmp_path, "w3", **flags)
            second_worker.send(signal.SIGTERM)
            await until(lambda: stream.epoch == 3, what="the hand-over")
            stream.append(pcm[half:], final=True)
            await ingress.ended(stream)
            assert_gapless(stream)
            if rate == 16_000:
                assert stream.text == expected_text(pcm)


async def test_a_worker_that_cannot_use_the_snapshot_skips_the_audio_before_the_checkpoint(
    redis_url: str, tmp_path: Path
) -> None:
    client, pcm = raw_client(redis_url), noise(30.0)
    with ExitStack() as stack:
        first = await worker(
            stack, redis_url, tmp_path, "w1", replay_seconds=4, snapshots="audio", lease_ms=SHORT_LEASE_MS
        )
        async with ingress_side(redis_url) as ingress:
            stream = await ingress.open()
            half = 5120 * (len(pcm) // 2 // 5120)
            for at in range(0, half, 5120):
                stream.append(pcm[at : at + 5120])
                await until(partial(lambda seq: stream.seq >= seq, at // 5120 - 12), what="results")
            await until(lambda: client.hget(stream.keys.meta, "ck_reach") is not None, what="a checkpoint")
            assert int(client.hget(stream.keys.meta, "ck_reach")) > 4 * 16_000, "more than is read ahead"
            first.send(signal.SIGKILL)
            first.wait()
            client.delete(stream.keys.snapshot)
            client.rpush(stream.keys.snapshot, b"of another layout")
            await worker(stack, redis_url, tmp_path, "w2")
            stream.append(pcm[half:], final=True)
            await ingress.ended(stream)
            assert stream.sent[-1]["is_final"]
            assert stream.sent[-1]["audio_ack_samples"] == len(pcm) // 2
