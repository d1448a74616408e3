"""The status line while speech flows, while a worker is frozen, and after it is gone."""

from __future__ import annotations

import signal
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from functools import partial
from pathlib import Path
from typing import Any

import orjson
import pytest

from common.entries import LAYOUT_VERSION, IngressId, StreamId
from common.presence.leases import IngressPresence, IngressReport
from common.presence.status import read_status
from common.redis.clients import AsyncRedis, PipelinedCommands, RedisServers
from common.redis.keys import Keys
from parakeet.audio.source import read_recording
from tests.servers import raw_client
from tests.service_process import ROOT
from tests.stream_client import ClientStream, IngressSide, ingress_side, noise
from tests.waiting import until
from tests.worker_process import WorkerProcess

pytestmark = pytest.mark.one_server

# Every field that docs/status.md documents, in order.
EXAMPLE = (
    '{"type":"status","connected_streams":3,"queues":{"raw_depth":2,"encoded_depth":1,'
    '"turn_detection_depth":0,"raw_streams":1,"encoded_streams":1,"turn_detection_streams":0},'
    '"ready_queues":{"pre_encode":1,"encode":1,"decode":0},"in_flight":2,"scheduler":{"active":3,'
    '"waiting":0},"timings_ms":{"turn_detection_avg":1.2,"pre_encode_avg":0.8,"encode_avg":1.5,'
    '"decode_avg":2.1},"rates_per_sec":{"turn_detection_sequences":120.0,"pre_encode_chunks":120.0,'
    '"encode_frames":2400.0,"decode_frames":2400.0,"decode_tokens":350.0},"counts":'
    '{"turn_detection_calls":120,"pre_encode_calls":120,"encode_calls":120,"decode_calls":120},'
    '"uptime_sec":42.0}'
)


@asynccontextmanager
async def connected(url: str) -> AsyncIterator[AsyncRedis]:
    redis = AsyncRedis(RedisServers.parse((url,)))
    try:
        yield redis
    finally:
        await redis.close()


def reached(stream: ClientStream, seq: int) -> bool:
    return stream.seq >= seq


def shape(value: Any) -> Any:
    """Keys in order, and the type of every value."""
    if isinstance(value, dict):
        return [(key, shape(item)) for key, item in value.items()]
    return type(value)


async def test_keys_order_and_types_are_as_documented(redis_url: str, tmp_path: Path) -> None:
    async with connected(redis_url) as redis:
        assert shape(await read_status(redis, Keys())) == shape(orjson.loads(EXAMPLE)), "of an empty cluster"
    with WorkerProcess(redis_url, "w1", tmp_path / "w1.log") as worker:
        worker.ready(raw_client(redis_url))
        async with ingress_side(redis_url) as ingress:
            stream = await ingress.open()
            stream.append(noise(1.0))
            await until(lambda: stream.seq >= 5, what="results")
            assert shape(await ingress.status()) == shape(orjson.loads(EXAMPLE))


async def settled(ingress: IngressSide, field: str, value: object) -> dict[str, Any]:
    """Wait until a field, `a.b` for one inside another, has a value; return the whole line."""
    status: dict[str, Any] = {}

    async def has_it() -> bool:
        nonlocal status
        status = await ingress.status()
        found: Any = status
        for name in field.split("."):
            found = found[name]
        return bool(found == value)

    await until(has_it, what=f"{field} = {value!r}")
    return status


async def test_counts_are_the_work_done(redis_url: str, tmp_path: Path) -> None:
    """Two workers, chunk by chunk: each chunk is one call of each stage, and there are no others."""
    client = raw_client(redis_url)
    chunk = 5120
    with (
        WorkerProcess(redis_url, "w1", tmp_path / "w1.log") as first,
        WorkerProcess(redis_url, "w2", tmp_path / "w2.log", worker_max_streams=1) as second,
    ):
        first.ready(client)
        second.ready(client)
        async with ingress_side(redis_url) as ingress:
            streams = [await ingress.open() for _ in range(3)]
            await until(lambda: all(stream.appender.owner for stream in streams), what="owners")
            for number in range(4):
                for stream in streams:  # one at a time, so that each chunk has a step of its own
                    stream.append(noise(0.16, number)[:chunk])
                    await until(partial(reached, stream, number + 1), what="a result")
            status = await settled(ingress, "counts.encode_calls", 12)
            assert status["counts"] == {
                f"{stage}_calls": 12 for stage in ("turn_detection", "pre_encode", "encode", "decode")
            }
            # Cumulative: they stay while nothing is done, and rates go back to nothing.
            await settled(ingress, "rates_per_sec.encode_frames", 0.0)
            status = await ingress.status()
            assert status["counts"]["encode_calls"] == 12
            assert status["in_flight"] == 0


async def test_rates_and_timings_are_those_of_the_window(redis_url: str, tmp_path: Path) -> None:
    client = raw_client(redis_url)
    with WorkerProcess(redis_url, "w1", tmp_path / "w1.log", null_step_ms=20) as worker:
        worker.ready(client)
        async with ingress_side(redis_url) as ingress:
            streams = [await ingress.open() for _ in range(2)]
            pcm = noise(4.0)
            for stream in streams:
                stream.append(pcm)
            await until(lambda: all(stream.seq >= 25 for stream in streams), what="results")
            # 25 chunks a stream, of two encoder frames and one token each, all within one window.
            status: dict[str, Any] = {}
            window_s = 0.0

            async def all_reported() -> bool:
                nonlocal status, window_s
                window_s = float(client.hget("px:{0}:w:w1", "window_s") or 0)
                status = await ingress.status()
                return bool(round(status["rates_per_sec"]["pre_encode_chunks"] * window_s) == 50)

            await until(all_reported, what="a report of all chunks")
            assert 0 < window_s <= 5.0 + 1.0
            # The last step may have had the rest of one stream alone.
            assert 1 <= status["in_flight"] <= 2
            rates = status["rates_per_sec"]
            chunks = rates["pre_encode_chunks"]
            assert rates["encode_frames"] == pytest.approx(2 * chunks, rel=0.01)
            assert rates["decode_tokens"] == pytest.approx(chunks, rel=0.01)
            # The null engine gives a step's time, 20 ms or longer, to the four stages in equal parts.
            timings = status["timings_ms"].values()
            assert min(timings) >= 5.0
            assert max(timings) == pytest.approx(min(timings), rel=0.01)


async def test_a_frozen_worker_shows_where_its_audio_waits_and_leaves_nothing(
    redis_url: str, tmp_path: Path
) -> None:
    client = raw_client(redis_url)
    with WorkerProcess(redis_url, "w1", tmp_path / "w1.log", lease_ms=9000) as worker:
        worker.ready(client)
        async with ingress_side(redis_url) as ingress:
            await ingress.beat()
            streams = [await ingress.open() for _ in range(3)]
            await until(lambda: all(stream.appender.owner for stream in streams), what="owners")
            for stream in streams:
                stream.append(noise(0.32))
            await until(lambda: all(stream.seq >= 2 for stream in streams), what="results")
            status = await settled(ingress, "queues.encoded_depth", 0)
            assert status["connected_streams"] == 3
            assert status["scheduler"] == {"active": 3, "waiting": 0}
            assert status["queues"]["raw_depth"] == 0
            assert status["ready_queues"] == {"pre_encode": 0, "encode": 0, "decode": 0}

            # Less than a chunk: delivered to the worker, and not to be acknowledged until it is whole.
            streams[0].append(noise(0.05))
            status = await settled(ingress, "queues.encoded_depth", 1)
            assert (status["queues"]["raw_depth"], status["queues"]["raw_streams"]) == (0, 0)
            assert status["queues"]["encoded_streams"] == 1

            await until(
                lambda: client.hget("px:{0}:w:w1", "encode_calls") != b"0", what="a report of the work"
            )
            worker.send(signal.SIGSTOP)
            # Reads that block in the server when the worker freezes would still be served.
            await until(lambda: client.info("clients")["blocked_clients"] == 0, what="their time-out")
            # Where a snapshot had fallen due, earlier entries are trimmed.
            before = [client.xlen(stream.keys.audio) for stream in streams]
            for stream in streams[1:]:
                stream.append(noise(0.16))
            await until(
                lambda: (
                    [client.xlen(stream.keys.audio) for stream in streams]
                    == [before[0], before[1] + 1, before[2] + 1]
                ),
                what="the audio",
            )
            streams[1].append(noise(0.16))
            status = await settled(ingress, "queues.raw_depth", 3)
            assert status["queues"]["raw_streams"] == 2
            assert status["queues"]["encoded_depth"] == 1
            status = await settled(ingress, "ready_queues.pre_encode", 2)
            assert status["scheduler"] == {"active": 3, "waiting": 0}
            assert status["counts"]["encode_calls"] > 0

            # A new stream that nobody claims.
            waiting = await ingress.open()
            status = await settled(ingress, "scheduler.waiting", 1)
            assert status["connected_streams"] == 4

            # The lease lapses: nothing of the worker counts any more, its audio still waits.
            status = await settled(ingress, "counts.encode_calls", 0)
            assert set(status["rates_per_sec"].values()) == {0.0}
            assert set(status["timings_ms"].values()) == {0.0}
            assert status["in_flight"] == 0
            assert status["ready_queues"] == {"pre_encode": 0, "encode": 0, "decode": 0}
            assert status["queues"]["raw_depth"] == 3
            await until(lambda: not client.exists("px:{0}:w:w1"), what="the end of its hash")

            worker.send(signal.SIGCONT)
            await until(lambda: waiting.appender.owner, what="the waiting stream's owner")
            for stream in (*streams, waiting):
                stream.append(b"", final=True)
            await ingress.ended(*streams, waiting)
            status = await settled(ingress, "scheduler.active", 0)
            assert status["queues"] == dict.fromkeys(status["queues"], 0)
            for stream in (*streams, waiting):
                await ingress.admission.release(stream.stream)
            await settled(ingress, "connected_streams", 0)


async def test_results_that_wait_for_a_verdict_are_counted(redis_url: str, tmp_path: Path) -> None:
    """The tiny model, and smart-turn that holds its verdicts back until it is told."""
    client = raw_client(redis_url)
    recording = read_recording(ROOT / "parakeet" / "recordings" / "goforward.wav")
    with WorkerProcess(
        redis_url,
        "w1",
        tmp_path / "w1.log",
        module="tests.altered.held_verdict_worker",
        backend="native",
        model_size="tiny",
        device="cpu",
        num_threads=1,
        worker_max_streams=4,
        smart_turn="on",
        smart_turn_timeout_ms=10_000,
    ) as worker:
        worker.ready(client)
        async with ingress_side(redis_url) as ingress:
            streams = [await ingress.open() for _ in range(2)]
            await until(lambda: all(stream.appender.owner for stream in streams), what="owners")
            assert (await ingress.status())["queues"]["turn_detection_depth"] == 0
            for stream in streams:
                stream.append(recording.pcm + bytes(2 * recording.rate))
            status = await settled(ingress, "queues.turn_detection_streams", 2)
            assert status["queues"]["turn_detection_depth"] >= 2
            assert status["counts"]["turn_detection_calls"] > 0
            assert status["timings_ms"]["turn_detection_avg"] > 0
            assert status["rates_per_sec"]["turn_detection_sequences"] > 0

            worker.send(signal.SIGUSR1)
            status = await settled(ingress, "queues.turn_detection_depth", 0)
            assert status["queues"]["turn_detection_streams"] == 0
            for stream in streams:
                stream.append(b"", final=True)
            await ingress.ended(*streams)
            ends = [message["turn_detection"] for message in streams[0].sent].count("end_of_utterance")
            assert ends >= 1
            assert client.hget("px:{0}:w:w1", "smart_turn_late") == b"0"


async def test_uptime_is_that_of_the_oldest_live_process(redis_url: str) -> None:
    keys = Keys()
    async with connected(redis_url) as redis:
        seconds, _ = await redis.cluster.execute_command("TIME")
        now_ms = int(seconds) * 1000
        old, new = (
            IngressPresence(PipelinedCommands(redis, 0), keys, IngressId(name), 15_000)
            for name in ("i-old", "i-new")
        )
        await old.beat(IngressReport(now_ms - 1_000_000, 0))
        await new.beat(IngressReport(now_ms - 5_000, 0))
        assert 1_000 <= (await read_status(redis, keys))["uptime_sec"] < 1_090
        await old.leave()
        assert 5 <= (await read_status(redis, keys))["uptime_sec"] < 95
        await new.leave()
        assert (await read_status(redis, keys))["uptime_sec"] == 0.0


async def test_the_backlog_is_known_after_a_takeover_and_a_trim(redis_url: str) -> None:
    """A group that begins in the middle of a trimmed stream still has a lag."""
    client = raw_client(redis_url)
    audio = Keys().stream(StreamId(1)).audio
    client.xadd("px:{0}:new", {"sid": 1, "v": LAYOUT_VERSION})
    client.pexpire("px:{0}:new", 60_000)
    for number in range(1, 11):
        client.xadd(audio, {"o": 0}, id=f"1-{number}")
    client.pexpire(audio, 60_000)
    async with connected(redis_url) as redis:
        for epoch, start, first_kept, raw in (
            (1, "0", "1-1", 10),
            (2, "1-4", "1-5", 6),
            (3, "1-7", "1-6", 3),
        ):
            client.xtrim(audio, minid=first_kept, approximate=False)
            client.xgroup_create(audio, f"asr-{epoch}", id=start)
            queues = (await read_status(redis, Keys()))["queues"]
            assert (queues["raw_depth"], queues["encoded_depth"]) == (raw, 0)
            client.xreadgroup(f"asr-{epoch}", "w", {audio: ">"}, count=2)
            queues = (await read_status(redis, Keys()))["queues"]
            assert (queues["raw_depth"], queues["encoded_depth"]) == (raw - 2, 2)


async def test_an_assignment_that_cannot_be_read_hides_no_status(redis_url: str) -> None:
    client = raw_client(redis_url)
    client.xgroup_create("px:{0}:new", "workers", mkstream=True)
    client.expire("px:{0}:new", 60)
    client.xadd("px:{0}:new", {"other": "program"})
    client.xadd("px:{0}:new", {"sid": 7, "v": LAYOUT_VERSION})
    async with connected(redis_url) as redis:
        status = await read_status(redis, Keys())
    assert status["scheduler"] == {"active": 0, "waiting": 2}


async def test_streams_that_are_claimed_meanwhile_are_not_fewer_than_none(redis_url: str) -> None:
    client = raw_client(redis_url)
    client.xgroup_create("px:{0}:new", "workers", mkstream=True)
    client.expire("px:{0}:new", 60)
    async with connected(redis_url) as redis:
        connection = redis.pipelined(0)
        send = connection.send

        def claimed_before(*arguments: Any) -> Any:
            client.xadd("px:{0}:new", {"sid": client.xlen("px:{0}:new") + 1, "v": LAYOUT_VERSION})
            client.xreadgroup("workers", "w-1", {"px:{0}:new": ">"})
            return send(*arguments)

        connection.send = claimed_before  # type: ignore[assignment, method-assign]
        status = await read_status(redis, Keys())
    assert status["scheduler"]["active"] > 0
    assert status["scheduler"]["waiting"] == 0
