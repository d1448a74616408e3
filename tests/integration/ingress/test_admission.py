"""Admission and the settings of the cluster, on real servers."""

from __future__ import annotations

import asyncio
import signal
from collections.abc import AsyncIterator
from typing import Any

import pytest

from common.entries import StreamId, WorkerId
from common.errors import NoFreeStream, NoWorker, RedisUnavailable, SettingsMismatch
from common.monitoring.families import STAGES
from common.presence.leases import WorkerLease
from common.presence.status import StageReport, WorkerReport
from common.redis.clients import AsyncRedis, RedisServers, SyncRedis
from common.redis.keys import Keys
from common.streams.admission import Admission, SharedSettings, check_worker_agrees
from parakeet.serve.embedded_redis import EmbeddedRedis
from tests.servers import raw_client
from tests.waiting import until


@pytest.fixture
async def admission(redis_url: str) -> AsyncIterator[Admission]:
    redis = AsyncRedis(RedisServers.parse((redis_url,)))
    yield Admission(redis.cluster, Keys())
    await redis.close()


def announce(url: str, name: str, capacity: int, *, draining: bool = False, owned: int = 0) -> None:
    """A worker as admission sees it: its hash and its lease."""
    redis = SyncRedis(RedisServers.parse((url,)))
    lease = WorkerLease(redis.cluster, Keys(), WorkerId(name), 60_000)
    idle = StageReport(0, 0, 0, 0.0)
    report = WorkerReport(
        capacity=capacity,
        owned=owned,
        draining=draining,
        started_ms=0,
        window_s=1.0,
        stages=dict.fromkeys(STAGES, idle),
        window_tokens=0,
        in_flight=0,
        ready_encode=0,
        ready_decode=0,
        turn_detection_depth=0,
        turn_detection_streams=0,
    )
    lease.report(report.fields(), takes=True)
    lease.renew()
    redis.close()


async def outcomes(admission: Admission, asked: int, limit: int) -> list[object]:
    return await asyncio.gather(
        *(admission.admit(limit, 60_000) for _ in range(asked)), return_exceptions=True
    )


async def test_of_fifty_at_once_exactly_the_limit_are_admitted(redis_url: str, admission: Admission) -> None:
    announce(redis_url, "w1", 100)
    answers = await outcomes(admission, 50, 10)
    admitted = sorted(answer for answer in answers if isinstance(answer, int))
    assert admitted == list(range(admitted[0], admitted[0] + 10))
    assert sum(isinstance(answer, NoFreeStream) for answer in answers) == 40
    await admission.release(StreamId(admitted[2]))
    assert await admission.admit(10, 60_000) == admitted[-1] + 1, "a place that was given back, and a new id"


async def test_a_slot_that_was_given_back_is_had_again_under_its_id(
    redis_url: str, admission: Admission
) -> None:
    announce(redis_url, "w1", 100)
    first = await admission.admit(2, 60_000)
    await admission.release(first)
    others = [await admission.admit(2, 60_000) for _ in range(2)]
    with pytest.raises(NoFreeStream):
        await admission.admit(2, 60_000, first)
    await admission.release(others[0])
    assert await admission.admit(2, 60_000, first) == first
    client = raw_client(redis_url)
    assert {int(member) for member in client.zrange("px:{0}:adm", 0, -1)} == {first, others[1]}
    await admission.release(first)
    assert await admission.admit(2, 60_000) == others[1] + 1, "an id given before moves no counter"
    client.close()


@pytest.mark.parametrize("remembered", [False, True], ids=["empty", "as-it-was"])
async def test_a_server_that_has_forgotten_its_last_streams_gives_no_id_again(
    own_server: EmbeddedRedis, remembered: bool
) -> None:
    """Whoever still streams under such an id would mix its audio with another client's, and get its words."""
    announce(own_server.url, "w1", 10)
    servers = RedisServers.parse((own_server.url,))
    redis = AsyncRedis(servers)
    admission, client = Admission(redis.cluster, Keys()), raw_client(own_server.url)
    before = [await admission.admit(10, 60_000)]
    moment = {key: client.dump(key) for key in ("px:{0}:sid", "px:{0}:run")}
    before += [await admission.admit(10, 60_000) for _ in range(3)]
    own_server.send_signal(signal.SIGKILL)
    await until(lambda: own_server.exited() is not None, what="the server's death")
    own_server.start()
    if remembered:
        for key, dump in moment.items():
            client.restore(key, 60_000, dump)
    announce(own_server.url, "w1", 10)
    after = [await admission.admit(10, 60_000) for _ in range(2)]
    assert after[0] > max(before)
    assert after[1] == after[0] + 1
    client.close()
    await redis.close()


async def test_a_missing_worker_and_a_full_cluster_are_told_apart(
    redis_url: str, admission: Admission
) -> None:
    with pytest.raises(NoWorker):
        await admission.admit(10, 60_000)
    announce(redis_url, "w1", 1)
    await admission.admit(10, 60_000)
    with pytest.raises(NoFreeStream):
        await admission.admit(10, 60_000)


class Asking:
    """Counts how often an admission asks Redis."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.times = 0
        ask = Admission._ask

        async def count(admission: Admission, *arguments: Any) -> Any:
            self.times += 1
            return await ask(admission, *arguments)

        monkeypatch.setattr(Admission, "_ask", count)

    async def again(self) -> None:
        """Wait until two further answers were not taken for the last word."""
        before = self.times
        await until(lambda: self.times > before + 2, what="another question")


async def test_a_lease_that_lapsed_in_a_pause_of_redis_is_given_time_to_be_renewed(
    redis_url: str, admission: Admission, monkeypatch: pytest.MonkeyPatch
) -> None:
    client, asking = raw_client(redis_url), Asking(monkeypatch)
    monkeypatch.setattr("common.streams.admission._RENEWAL_S", 600.0)

    def lapse(*workers: str, ago_ms: int = 1000) -> None:
        now_ms = int(client.time()[0]) * 1000
        client.zadd("px:{0}:workers", dict.fromkeys(workers, now_ms - ago_ms))

    announce(redis_url, "w1", 1)
    lapse("w1")
    asked = asyncio.create_task(admission.admit(10, 60_000))
    await asking.again()
    assert not asked.done()
    announce(redis_url, "w1", 1)
    assert await asked > 0
    # One of two workers is late: the cluster only looks full.
    announce(redis_url, "w2", 1)
    lapse("w2")
    asked = asyncio.create_task(admission.admit(10, 60_000))
    await asking.again()
    assert not asked.done()
    announce(redis_url, "w2", 1)
    assert await asked > 0
    # Who gave its lease back, or is long dead, is not waited for.
    client.zadd("px:{0}:workers", {"w1": 0, "w2": 0})
    for _ in range(2):
        before = asking.times
        with pytest.raises(NoWorker):
            await admission.admit(10, 60_000)
        assert asking.times == before + 1
        lapse("w1", "w2", ago_ms=600_000)
    # Nor does anybody wait for ever.
    monkeypatch.setattr("common.streams.admission._RENEWAL_S", 1.5)
    lapse("w1", "w2")
    began = asyncio.get_running_loop().time()
    with pytest.raises(NoWorker):
        await admission.admit(10, 60_000)
    assert asyncio.get_running_loop().time() - began >= 1.5
    client.close()


async def test_the_workers_together_bound_the_cluster(redis_url: str, admission: Admission) -> None:
    announce(redis_url, "w1", 2)
    announce(redis_url, "w2", 3)
    admitted = [answer for answer in await outcomes(admission, 10, 100) if isinstance(answer, int)]
    assert len(admitted) == 5
    # One of them drains with two streams: these still count, its free slots do not.
    announce(redis_url, "w2", 3, draining=True, owned=2)
    for stream in admitted[:2]:
        await admission.release(StreamId(stream))
    assert isinstance((await outcomes(admission, 1, 100))[0], int)
    assert isinstance((await outcomes(admission, 1, 100))[0], NoFreeStream)


async def test_workers_that_all_drain_are_no_workers(redis_url: str, admission: Admission) -> None:
    announce(redis_url, "w1", 5, draining=True)
    with pytest.raises(NoWorker):
        await admission.admit(10, 60_000)


async def test_an_admission_that_is_not_renewed_lapses(redis_url: str, admission: Admission) -> None:
    announce(redis_url, "w1", 10)
    kept = await admission.admit(2, 4000)
    lapsing = await admission.admit(2, 4000)
    await admission.renew([kept], 60_000)

    async def free() -> bool:
        try:
            await admission.admit(2, 60_000)
        except NoFreeStream:
            return False
        return True

    await until(free, what="the lapse")
    members = raw_client(redis_url).zrange("px:{0}:adm", 0, -1)
    assert str(kept).encode() in members
    assert str(lapsing).encode() not in members


async def test_thousands_are_renewed_in_one_call(redis_url: str, admission: Admission) -> None:
    await admission.renew([StreamId(number) for number in range(1, 9001)], 60_000)
    assert raw_client(redis_url).zcard("px:{0}:adm") == 9000


async def test_settings_of_the_cluster_must_agree(redis_url: str, admission: Admission) -> None:
    await admission.agree(SharedSettings(100, 16_000, 1), 60_000)
    await admission.agree(SharedSettings(100, 16_000, 1), 60_000)
    with pytest.raises(SettingsMismatch, match=r"--max-num-streams is 50 here, .* has 100"):
        await admission.agree(SharedSettings(50, 16_000, 1), 60_000)
    with pytest.raises(SettingsMismatch, match="--sample-rate is 8000 here"):
        await admission.agree(SharedSettings(100, 8000, 1), 60_000)
    redis = SyncRedis(RedisServers.parse((redis_url,)))
    check_worker_agrees(redis.cluster, Keys(1))
    with pytest.raises(SettingsMismatch, match=r"--redis-shards .* is 2 here"):
        check_worker_agrees(redis.cluster, Keys(2))
    redis.close()
    client = raw_client(redis_url)
    assert 0 < client.pttl("px:{0}:conf") <= 60_000
    client.delete("px:{0}:conf")
    await admission.agree(SharedSettings(50, 16_000, 1), 60_000)


async def test_a_dead_redis_is_told_apart_from_a_full_cluster() -> None:
    redis = AsyncRedis(RedisServers.parse(("redis://127.0.0.1:1",), timeout_ms=200))
    with pytest.raises(RedisUnavailable):
        await Admission(redis.cluster, Keys()).admit(10, 1000)
    await redis.close()


async def test_no_stream_is_admitted_when_redis_has_little_memory_left(own_server: EmbeddedRedis) -> None:
    client = raw_client(own_server.url)
    announce(own_server.url, "w1", 10)
    redis = AsyncRedis(RedisServers.parse((own_server.url,)))
    admission = Admission(redis.cluster, Keys())
    try:
        await admission.admit(10, 60_000)
        used = int(client.info("memory")["used_memory"])
        client.config_set("maxmemory", int(used * 1.05))
        with pytest.raises(NoFreeStream, match="too little memory"):
            await admission.admit(10, 60_000)
        client.config_set("maxmemory", used * 4)
        await admission.admit(10, 60_000)
    finally:
        await redis.close()
        client.close()
