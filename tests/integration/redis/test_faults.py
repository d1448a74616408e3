"""Redis refuses, pauses, goes away and loses replies: what the audio path and the workers make of it."""

from __future__ import annotations

import asyncio
import signal
from functools import partial
from pathlib import Path
from typing import Final

import pytest

from common.entries import AudioEntry, StreamId, WorkerId
from common.errors import RedisUnavailable
from common.redis.clients import AsyncRedis, RedisServers, SyncRedis, blocking_connection
from common.redis.keys import Keys
from common.streams.audio_tail import decoded_samples
from common.streams.claims import Claims
from gpu_worker.pipeline.intake import AudioReader
from parakeet.client import connect
from parakeet.serve.embedded_redis import EmbeddedRedis
from tests.chaos.fleets.fault_proxy import FaultProxy
from tests.ingress_process import IngressProcess
from tests.servers import ServerKind, make_server, raw_client
from tests.stack import Stack, check_gapless, transcribe
from tests.stream_client import expected_text, ingress_side, noise, num_unacked
from tests.waiting import until
from tests.worker_process import WorkerProcess


async def test_results_lost_with_the_subscription_are_caught_up(redis_url: str, tmp_path: Path) -> None:
    client = raw_client(redis_url)
    pcm = noise(4.0)
    with WorkerProcess(redis_url, "w1", tmp_path / "w1.log") as worker:
        worker.ready(client)
        async with ingress_side(redis_url) as ingress:
            stream = await ingress.open()
            quarter = len(pcm) // 4
            stream.append(pcm[:quarter])
            await until(lambda: stream.seq >= 5, what="results")
            before = ingress.subscriptions
            assert client.client_kill_filter(_type="pubsub") >= 1
            # Published to nobody, while the ingress is away.
            stream.append(pcm[quarter : 2 * quarter])
            await until(lambda: ingress.subscriptions > before, what="the new subscription")
            await until(lambda: stream.seq >= 11, what="what was missed")
            stream.append(pcm[2 * quarter :], final=True)
            await ingress.ended(stream)
            assert [sent["seq"] for sent in stream.sent] == list(range(1, len(stream.sent) + 1))
            assert stream.text == expected_text(pcm)


async def test_audio_whose_notice_was_lost_is_found_by_the_sweep(redis_url: str, tmp_path: Path) -> None:
    client = raw_client(redis_url)
    pcm = noise(0.5)
    with WorkerProcess(redis_url, "w1", tmp_path / "w1.log") as worker:
        worker.ready(client)
        async with ingress_side(redis_url) as ingress:
            stream = await ingress.open()
            await until(lambda: stream.appender.owner, what="an owner")
            await until(lambda: client.zcard("px:{0}:ready:w1") == 0, what="its first look")
            entry = AudioEntry(b"1-1", 0, pcm, final=True)
            client.execute_command("XADD", stream.keys.audio, entry.entry_id, *entry.fields())
            await ingress.ended(stream)
            assert stream.text == expected_text(pcm)


async def test_one_missing_group_fails_its_stream_and_no_other(redis_url: str, tmp_path: Path) -> None:
    client = raw_client(redis_url)
    pcm = noise(2.0)
    with WorkerProcess(redis_url, "w1", tmp_path / "w1.log") as worker:
        worker.ready(client)
        async with ingress_side(redis_url) as ingress:
            streams = [await ingress.open() for _ in range(3)]
            for stream in streams:
                stream.append(pcm[: len(pcm) // 2])
            await until(lambda: all(stream.seq >= 6 for stream in streams), what="results")
            assert client.xgroup_destroy(streams[1].keys.audio, "asr-1") == 1
            for stream in streams:
                stream.append(pcm[len(pcm) // 2 :], final=True)
            await ingress.ended(*streams)
            assert [streams[0].text, streams[2].text] == [expected_text(pcm)] * 2
            assert streams[1].sent[-1]["code"] == "stream_lost"


def test_a_read_with_a_missing_group_still_gives_the_others(redis_url: str) -> None:
    client = raw_client(redis_url)
    keys = Keys()
    streams = [keys.stream(StreamId(number)) for number in (1, 2, 3)]
    for stream in streams:
        client.xadd(stream.audio, {b"o": 0, b"p": b"\1\0"}, id=b"1-1")
        client.pexpire(stream.audio, 60_000)
    for stream in (streams[0], streams[2]):
        client.xgroup_create(stream.audio, "asr-1", id="0")
    servers = RedisServers.parse((redis_url,))
    blocking = blocking_connection(servers, 0, 100)
    reader = AudioReader(blocking, keys, [0], WorkerId("w1"))
    read = dict(reader.read([(stream, 1) for stream in streams], 10))
    blocking.close()
    assert {key: entries is None for key, entries in read.items()} == {
        stream.audio: stream is streams[1] for stream in streams
    }
    assert [entry_id for entry_id, _ in read[streams[0].audio] or ()] == [b"1-1"]


async def test_a_full_redis_pushes_back_and_then_goes_on(own_server: EmbeddedRedis, tmp_path: Path) -> None:
    client = raw_client(own_server.url)
    pcm = noise(4.0)
    with WorkerProcess(own_server.url, "w1", tmp_path / "w1.log") as worker:
        worker.ready(client)
        async with ingress_side(own_server.url) as ingress:
            stream = await ingress.open()
            stream.append(pcm[: len(pcm) // 2])
            await until(lambda: stream.seq >= 12, what="results")
            client.config_set("maxmemory", 1)
            stream.append(pcm[len(pcm) // 2 :], final=True)
            await until(lambda: _refusals(client) > 0, what="a refusal")
            assert stream.appender.pending_bytes > 0
            assert stream.failure is None
            client.config_set("maxmemory", 512 * 1024 * 1024)
            await ingress.ended(stream)
            assert stream.text == expected_text(pcm)
            assert [sent["seq"] for sent in stream.sent] == list(range(1, len(stream.sent) + 1))
        assert worker.running


async def test_streams_with_much_audio_wait_while_memory_is_short_and_none_fails(
    server_kind: ServerKind, tmp_path: Path
) -> None:
    """At its limit a server would refuse the audio of those who speak in real time as well."""
    server = make_server(server_kind, maxmemory_mb=12)
    server.start()
    stack = Stack(server.url, tmp_path)
    try:
        stack.worker(null_step_ms=40, replay_seconds=10)
        ingress = stack.ingress(redis_outage_s=10)
        room = 12 * 2**20 - stack.client.info("memory")["used_memory"]
        stack.client.setrange("ballast", room - 4 * 2**20, b"\0")
        pcm = noise(40.0)  # 1.3 MB, of which five streams have too many for the room that is left
        told = await asyncio.gather(*(transcribe(ingress.tcp_url, pcm, 64_000) for _ in range(5)))
        for results in told:
            check_gapless(results)
            assert results[-1].text == expected_text(pcm)
    finally:
        stack.close()
        server.stop()


def _refusals(client: object) -> int:
    stats = client.info("errorstats")  # type: ignore[attr-defined]
    return int(stats.get("errorstat_OOM", {"count": 0})["count"])


async def test_a_redis_that_stays_full_fails_the_streams_that_append(
    own_server: EmbeddedRedis, tmp_path: Path
) -> None:
    client = raw_client(own_server.url)
    with WorkerProcess(own_server.url, "w1", tmp_path / "w1.log") as worker:
        worker.ready(client)
        async with ingress_side(own_server.url, give_up_ms=3000) as ingress:
            stream = await ingress.open()
            quiet = await ingress.open()
            await until(lambda: stream.appender.owner and quiet.appender.owner, what="owners")
            client.config_set("maxmemory", 1)
            stream.append(noise(1.0))
            await until(lambda: stream.failure, what="the failure")
            assert isinstance(stream.failure, RedisUnavailable)
            with pytest.raises(RedisUnavailable):
                stream.append(b"\0\0")
            with pytest.raises(RedisUnavailable):
                await stream.appender.room(0)
            client.config_set("maxmemory", 512 * 1024 * 1024)
            pcm = noise(1.0)
            quiet.append(pcm, final=True)
            await ingress.ended(quiet)
            assert quiet.text == expected_text(pcm)


async def test_a_pause_of_redis_loses_nothing(own_server: EmbeddedRedis, tmp_path: Path) -> None:
    client = raw_client(own_server.url)
    pcm = noise(4.0)
    with WorkerProcess(
        own_server.url, "w1", tmp_path / "w1.log", lease_ms=1000, redis_timeout_ms=500
    ) as worker:
        worker.ready(client)
        async with ingress_side(own_server.url) as ingress:
            stream = await ingress.open()
            stream.append(pcm[: len(pcm) // 2])
            await until(lambda: stream.seq >= 6, what="results")
            # Longer than the lease and than the time-outs of the worker's calls.
            client.execute_command("CLIENT", "PAUSE", 1500, "ALL")
            stream.append(pcm[len(pcm) // 2 :], final=True)
            await ingress.ended(stream)
            assert stream.text == expected_text(pcm)
            assert [sent["seq"] for sent in stream.sent] == list(range(1, len(stream.sent) + 1))


@pytest.mark.parametrize("pause_s", [0.5, 1.5, 3.0])
async def test_a_client_that_connects_while_redis_pauses_is_served(own_stack: Stack, pause_s: float) -> None:
    """Longer than a lease, which then has lapsed when Redis goes on: that is no missing worker."""
    own_stack.worker(lease_ms=1000, redis_timeout_ms=1000)
    ingress = own_stack.ingress()
    pcm = noise(0.5)
    for _ in range(3):
        own_stack.client.execute_command("CLIENT", "PAUSE", int(pause_s * 1000), "ALL")
        results = await transcribe(ingress.tcp_url, pcm)
        assert results[-1].text == expected_text(pcm)


async def test_all_connections_cut_lose_nothing(own_server: EmbeddedRedis, tmp_path: Path) -> None:
    client = raw_client(own_server.url)
    pcm = noise(6.0)
    with WorkerProcess(own_server.url, "w1", tmp_path / "w1.log") as worker:
        worker.ready(client)
        async with ingress_side(own_server.url) as ingress:
            stream = await ingress.open()
            part = len(pcm) // 6
            for number in range(6):
                stream.append(pcm[number * part : (number + 1) * part], final=number == 5)
                for kind in ("normal", "pubsub"):
                    client.client_kill_filter(_type=kind, skipme=True)
                wanted = 5 * number
                await until(partial(lambda seq: stream.seq >= seq, wanted), what="results")
            await ingress.ended(stream)
            assert stream.text == expected_text(pcm)
            assert [sent["seq"] for sent in stream.sent] == list(range(1, len(stream.sent) + 1))


async def test_a_stream_claimed_and_not_opened_is_opened_by_the_sweep(redis_url: str, tmp_path: Path) -> None:
    """As when the connection broke between the read of an assignment and the opening of its stream."""
    client = raw_client(redis_url)
    pcm = noise(0.5)
    with WorkerProcess(redis_url, "w1", tmp_path / "w1.log") as worker:
        worker.ready(client)
        other = SyncRedis(RedisServers.parse((redis_url,)))
        async with ingress_side(redis_url) as ingress:
            stream = await ingress.open()
            await until(lambda: stream.appender.owner, what="an owner")
            stray = await ingress.open()
            await until(lambda: stray.appender.owner, what="an owner")
            claims = Claims(other, Keys(), WorkerId("w1"))
            # The worker forgets it, its consumer does not.
            client.hset(stray.keys.meta, "epoch", 7)
            client.xgroup_destroy(stray.keys.audio, "asr-1")
            await until(lambda: stray.epoch == 8, what="the opening of the stray")
            stray.append(pcm, final=True)
            stream.append(pcm, final=True)
            await ingress.ended(stream, stray)
            assert (stream.text, stray.text) == (expected_text(pcm), expected_text(pcm))
            assert claims.owners()[WorkerId("w1")] == 0
        other.close()


async def test_entries_whose_reply_was_lost_are_read_again(tmp_path: Path) -> None:
    """Redis delivers audio to a worker, and the reply never arrives: the group has them, the worker not."""
    pcm = noise(6.0)
    server = make_server("embedded")
    server.start()
    proxy = FaultProxy(tmp_path / "w.sock", server.socket_path)
    await proxy.start()
    client = raw_client(server.url)
    try:
        with WorkerProcess(proxy.url, "w1", tmp_path / "w1.log", lease_ms=120_000) as worker:
            await until(lambda: client.zscore("px:{0}:workers", "w1"), what="the worker")
            async with ingress_side(server.url) as ingress:
                stream = await ingress.open()
                stream.append(pcm[: len(pcm) // 3])
                await until(lambda: stream.seq >= 10, what="results")
                # The rest of its audio is less than a chunk.
                await until(lambda: num_unacked(client, stream) <= 1, what="acknowledgements")
                had = num_unacked(client, stream)
                proxy.lose_reply_to = b"asr-1"
                stream.append(pcm[len(pcm) // 3 : 2 * len(pcm) // 3])
                await until(lambda: num_unacked(client, stream) > had, what="a delivery")
                proxy.lose_reply_to = b""
                assert proxy.cut_deaf() > 0
                stream.append(pcm[2 * len(pcm) // 3 :], final=True)
                await ingress.ended(stream)
                assert stream.epoch == 1
                assert stream.text == expected_text(pcm)
                assert "audio read again" in worker.log_text()
    finally:
        await proxy.stop()
        client.close()
        server.stop()


# What a worker says when it looks for streams of its own, and in its first heartbeat.
_OWN_STREAMS: Final = b"redis.pcall('XPENDING', assignments, group)"
_FIRST_HEARTBEAT: Final = b"capacity"


@pytest.mark.parametrize("said", [_OWN_STREAMS, _FIRST_HEARTBEAT], ids=["own streams", "first heartbeat"])
async def test_a_worker_whose_redis_pauses_while_it_starts_waits_for_it(tmp_path: Path, said: bytes) -> None:
    """It has agreed with its cluster by then, and would end with an error for a reply that is late."""
    pcm = noise(1.0)
    with make_server("embedded") as server:
        proxy, client = FaultProxy(tmp_path / "w.sock", server.socket_path), raw_client(server.url)
        await proxy.start()
        proxy.lose_reply_to = said
        try:
            with WorkerProcess(proxy.url, "w1", tmp_path / "w1.log", redis_timeout_ms=300) as worker:
                await until(lambda: "the start waits for Redis" in worker.log_text(), what="a late reply")
                assert "worker ready" not in worker.log_text()
                proxy.lose_reply_to = b""
                async with ingress_side(server.url) as ingress:
                    stream = await ingress.open()
                    stream.append(pcm, final=True)
                    await ingress.ended(stream)
                    assert stream.text == expected_text(pcm)
        finally:
            await proxy.stop()
            client.close()


async def test_a_worker_that_waits_for_redis_in_its_start_can_be_stopped(tmp_path: Path) -> None:
    with make_server("embedded") as server:
        proxy = FaultProxy(tmp_path / "w.sock", server.socket_path)
        await proxy.start()
        proxy.lose_reply_to = _OWN_STREAMS
        try:
            with WorkerProcess(proxy.url, "w1", tmp_path / "w1.log", redis_timeout_ms=300) as worker:
                await until(lambda: "the start waits for Redis" in worker.log_text(), what="a late reply")
                worker.send(signal.SIGTERM)
                assert await asyncio.to_thread(worker.wait) == 0
                assert "stopped before Redis was there" in worker.log_text()
        finally:
            await proxy.stop()


@pytest.mark.parametrize("redis_loss_ms", [0, 3000])
async def test_the_end_of_a_stream_is_read_though_replies_about_it_were_lost(
    tmp_path: Path, redis_loss_ms: int
) -> None:
    """Redis takes the last audio, a worker ends the stream; its ingress hears nothing and appends again."""
    pcm = noise(3.0)
    half = len(pcm) // 4 * 2
    server = make_server("embedded")
    server.start()
    proxy = FaultProxy(tmp_path / "i.sock", server.socket_path)
    await proxy.start()
    client = raw_client(server.url)
    try:
        with (
            WorkerProcess(server.url, "w1", tmp_path / "w1.log") as worker,
            IngressProcess(proxy.url, "i1", tmp_path / "i1.log", redis_loss_ms=redis_loss_ms) as ingress,
        ):
            worker.ready(client)
            # The proxy runs on this loop.
            await asyncio.to_thread(ingress.ready, client)
            async with await connect(ingress.tcp_url) as stream:
                await stream.send(pcm[:half])
                await anext(stream.results())
                deaf = asyncio.create_task(proxy.deafen(1.0))
                await asyncio.sleep(0)
                await stream.send(pcm[half:])
                await stream.finish()
                meta = f"px:{{0}}:{stream.stream_id}:m"
                await until(lambda: client.hget(meta, "finished"), what="the end in Redis")
                await deaf
                texts = [result.text async for result in stream.results()]
                assert texts[-1] == expected_text(pcm)
    finally:
        await proxy.stop()
        client.close()
        server.stop()


async def test_what_is_decoded_can_be_read_where_nobody_was_told(redis_url: str) -> None:
    client = raw_client(redis_url)
    servers = RedisServers.parse((redis_url,))
    redis = AsyncRedis(servers)
    keys = Keys(1).stream(StreamId(1))

    async def decoded() -> int:
        return await decoded_samples(redis, keys)

    def read(count: int) -> list[bytes]:
        found = client.xreadgroup("asr-1", "w-1", {keys.audio: ">"}, count=count)
        return [entry_id for entry_id, _ in found[0][1]]

    assert await decoded() == 0  # there is no such stream
    for seq in range(1, 5):
        entry = AudioEntry(b"1-%d" % seq, 100 * (seq - 1), bytes(200))
        client.execute_command("XADD", keys.audio, entry.entry_id, *entry.fields())
    assert await decoded() == 0  # nobody reads it
    client.xgroup_create(keys.audio, "asr-1", id="0")
    first, second = read(2)
    assert await decoded() == 0
    client.xack(keys.audio, "asr-1", second)
    assert await decoded() == 0
    client.xack(keys.audio, "asr-1", first)
    assert await decoded() == 200
    client.xack(keys.audio, "asr-1", *read(4))
    assert await decoded() == 400
    client.xgroup_create(keys.audio, "asr-2", id=first)
    client.xgroup_destroy(keys.audio, "asr-1")
    assert await decoded() == 100  # another owner goes on behind a checkpoint
    client.delete(keys.audio)
    await redis.close()
