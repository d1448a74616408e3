"""The processes that a worker starts for suspects."""

from __future__ import annotations

import signal
import subprocess
from collections.abc import Iterator

import pytest

from common.entries import AssignmentEntry, StreamId, WorkerId
from common.presence.leases import WorkerLease
from common.redis.clients import RedisServers, SyncRedis
from common.redis.keys import Keys
from common.settings import WorkerSettings, parse
from common.streams.claims import Claims
from gpu_worker.ownership.quarantine import DEFAULT_MODULE, MOST_FAILED_STARTS, Quarantine
from tests.waiting import wait_until

WORKER = WorkerId("w1")
ENTRY = AssignmentEntry(StreamId(1), b"1-1")


class Starts:
    """Counts processes."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.processes: list[subprocess.Popen[bytes]] = []
        self._start = subprocess.Popen
        monkeypatch.setattr("gpu_worker.ownership.quarantine.subprocess.Popen", self)

    def __call__(self, *args: object, **named: object) -> subprocess.Popen[bytes]:
        self.processes.append(self._start(*args, **named))  # type: ignore[call-overload]
        return self.processes[-1]


@pytest.fixture
def redis(redis_url: str) -> Iterator[SyncRedis]:
    made = SyncRedis(RedisServers.parse((redis_url,)))
    yield made
    made.close()


def make(redis: SyncRedis, url: str, module: str) -> Quarantine:
    keys = Keys()
    claims = Claims(redis, keys, WORKER)
    claims.prepare()
    settings = parse("worker", ["--backend=null", f"--redis-url={url}", f"--worker-id={WORKER}"], {})
    assert isinstance(settings, WorkerSettings)
    return Quarantine(settings, claims, redis.cluster, keys, module)


def test_suspects_are_ended_for_a_while_where_no_process_starts(
    monkeypatch: pytest.MonkeyPatch, redis: SyncRedis, redis_url: str
) -> None:
    """As where the device is full: a stream that waits for it would wait for ever."""
    starts = Starts(monkeypatch)
    quarantine = make(redis, redis_url, "no.such.module")
    wait_until(lambda: not quarantine.isolate(ENTRY), 100, "the last attempt")
    assert len(starts.processes) == MOST_FAILED_STARTS
    assert not quarantine.isolate(ENTRY)
    monkeypatch.setattr(quarantine, "_gives_up_until", 0.0)  # a while later
    assert quarantine.isolate(ENTRY)
    assert len(starts.processes) == MOST_FAILED_STARTS + 1
    quarantine.stop(60.0)


@pytest.mark.parametrize(
    ("number", "status"),
    [
        (signal.SIGKILL, -signal.SIGKILL),  # as a suspect does that crashes a kernel
        (signal.SIGTERM, 0),  # it releases its lease, as after a hang, an exception, or for want of suspects
    ],
)
def test_a_process_that_has_served_is_no_failed_start(
    monkeypatch: pytest.MonkeyPatch,
    redis: SyncRedis,
    redis_url: str,
    number: signal.Signals,
    status: int,
) -> None:
    starts = Starts(monkeypatch)
    quarantine = make(redis, redis_url, DEFAULT_MODULE)
    quarantine._num_failed = MOST_FAILED_STARTS - 1
    assert quarantine.isolate(ENTRY)
    lease = WorkerLease(redis.cluster, Keys(), WorkerId(f"{WORKER}-q1"), 1)
    taken_until_ms = lease.end_ms()
    wait_until(lambda: lease.end_ms() != taken_until_ms, 100, "the process")
    starts.processes[-1].send_signal(number)
    assert starts.processes[-1].wait() == status
    quarantine.look()
    assert quarantine._num_failed == 0
    quarantine.stop(60.0)
