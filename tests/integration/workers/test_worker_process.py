"""A worker process beside its streams: what its threads, its signals and its flags make of it."""

from __future__ import annotations

import re
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.request import urlopen

import pytest

from parakeet.serve.embedded_redis import EmbeddedRedis
from tests.altered.dying_worker import OTHER, RAISES, VICTIM
from tests.ports import free_ports
from tests.servers import make_server, raw_client
from tests.service_process import ROOT, ServiceProcess
from tests.waiting import wait_until
from tests.worker_process import WorkerProcess

THREADS = ("engine", "outlet-0", "snapshots-0", "sweeper", "heartbeat", "intake-0", "claimer-0")
ENDS_AT_START = "redis-check"


@pytest.fixture(scope="module")
def server() -> Iterator[EmbeddedRedis]:
    """One kind of server is enough: nothing here depends on it."""
    made = make_server("embedded")
    made.start()
    yield made
    made.stop()


@pytest.mark.parametrize("raises", ["", "1"], ids=["returns", "raises"])
@pytest.mark.parametrize("victim", THREADS)
def test_a_thread_that_ends_ends_the_worker(
    victim: str, raises: str, server: EmbeddedRedis, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(VICTIM, victim)
    monkeypatch.setenv(RAISES, raises)
    with WorkerProcess(server.url, "w1", tmp_path / "w1.log", module="tests.altered.dying_worker") as worker:
        assert worker.wait() == 1
        log = worker.log_text()
        assert ("RuntimeError: a defect" if raises else "a thread ended: ") in log
        assert "the worker has failed, giving up" in log
        # Its streams go on elsewhere at once: the lease does not wait to lapse.
        client = raw_client(server.url)
        assert client.zscore("px:{0}:workers", "w1") in (0, None)
        client.close()


def test_a_thread_that_is_not_the_workers_own_ends_it_by_an_error(
    server: EmbeddedRedis, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(VICTIM, OTHER)
    monkeypatch.setenv(RAISES, "1")
    with WorkerProcess(server.url, "w1", tmp_path / "w1.log", module="tests.altered.dying_worker") as worker:
        assert worker.wait() == 1
        assert f"the thread {OTHER} failed" in worker.log_text()


def test_every_thread_of_a_worker_is_tried_here(server: EmbeddedRedis, tmp_path: Path) -> None:
    with WorkerProcess(server.url, "w1", tmp_path / "w1.log", module="tests.altered.dying_worker") as worker:
        wait_until(lambda: "worker ready" in worker.log_text())

        def started() -> list[str]:
            lines = [line.split() for line in worker.log_text().splitlines() if line.startswith("thread ")]
            return sorted(name for _, name, *_ in lines if name != ENDS_AT_START)

        # The last of them start while "ready" is being said.
        wait_until(lambda: len(started()) >= len(THREADS) + 1)
        assert started() == sorted((*THREADS, OTHER))
        worker.send(signal.SIGTERM)
        assert worker.wait() == 0


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_worker_that_waits_for_redis_stops_in_good_order(number: signal.Signals, tmp_path: Path) -> None:
    (port,) = free_ports(1)
    url = f"redis://127.0.0.1:{port}/0"
    with WorkerProcess(url, "w1", tmp_path / "w1.log") as worker:
        wait_until(lambda: "waiting for Redis" in worker.log_text())
        worker.send(number)
        assert worker.wait() == 0
        assert "stopped before Redis was there" in worker.log_text()
        assert "Traceback" not in worker.log_text()


@pytest.mark.parametrize(
    ("module", "name_flag"), [("gpu_worker", "--worker-id"), ("ingress", "--ingress-id")]
)
@pytest.mark.parametrize(
    "source",
    [
        "/no/such/file",
        "{broken",
        "{}",
        '{"version": 2}',
        '{"version": 1, "handlers": {"h": {"class": "no.such.Handler"}}}',
    ],
)
def test_a_wrong_log_config_is_one_sentence(module: str, name_flag: str, source: str, tmp_path: Path) -> None:
    log = tmp_path / "process.log"
    flags = {"log_config": source}
    with ServiceProcess(module, "redis://127.0.0.1:1", name_flag, "p1", "", log, flags) as process:
        assert process.wait() == 2
        (line,) = process.log_text().splitlines()
        assert ": --log-config " in line


def test_a_stop_takes_no_longer_with_more_servers(tmp_path: Path) -> None:
    """Redis is frozen at the stop: every wait of every thread runs into its limit, and they do not add up."""
    servers = [make_server("embedded") for _ in range(3)]
    try:
        for one in servers:
            one.start()
        urls = ",".join(one.url for one in servers)
        with WorkerProcess(
            urls, "w1", tmp_path / "w1.log", drain_timeout_s=0, redis_timeout_ms=20_000
        ) as worker:
            worker.ready(raw_client(servers[0].url))
            for one in servers:
                one.send_signal(signal.SIGSTOP)
            worker.send(signal.SIGTERM)
            assert worker.wait(30.0) in (0, 1)
    finally:
        for one in servers:
            one.send_signal(signal.SIGCONT)
            one.stop()


@pytest.mark.parametrize("seconds", [0, 0.2])
def test_what_a_worker_carries_is_logged_and_shown(
    server: EmbeddedRedis, tmp_path: Path, seconds: float
) -> None:
    (port,) = free_ports(1)
    flags: dict[str, Any] = {"metrics_port": port, "measure_capacity_s": seconds, "max_num_streams": 50}
    with WorkerProcess(server.url, "w1", tmp_path / "w1.log", **flags) as worker:
        wait_until(lambda: "worker ready" in worker.log_text())
        with urlopen(f"http://127.0.0.1:{port}/metrics", timeout=60) as response:
            text = response.read().decode()
        (shown,) = re.findall(r"^parakeet_worker_measured_streams (\S+)$", text, re.MULTILINE)
        assert "50 slots, --max-num-streams 50, carries " in worker.log_text()
        assert (float(shown) > 0) == (seconds > 0)
        if seconds:
            assert f"{float(shown):.0f} streams in real time" in worker.log_text()
        worker.send(signal.SIGTERM)
        assert worker.wait() == 0


def test_a_process_for_suspects_whose_worker_died_meanwhile_gives_its_lease_back(
    server: EmbeddedRedis, tmp_path: Path
) -> None:
    """Its worker took the lease, for as long as loading may take: nobody would take its streams meanwhile."""
    client = raw_client(server.url)
    client.zadd("px:{0}:workers", {"w1-q1": 2 * int(time.time() * 1000)}, nx=True)
    client.pexpire("px:{0}:workers", 600_000)
    command = [sys.executable, "-m", "gpu_worker.quarantined", "--worker-id=w1-q1", "--backend=null"]
    with (tmp_path / "log").open("wb") as log:
        done = subprocess.run(
            [*command, f"--redis-url={server.url}", "--worker-max-streams=1"],
            cwd=ROOT,
            stdin=subprocess.DEVNULL,  # as after the death of its worker
            stdout=log,
            stderr=log,
            timeout=100,
            check=False,
        )
    assert done.returncode == 0, (tmp_path / "log").read_text()
    assert client.zscore("px:{0}:workers", "w1-q1") in (0, None)
    client.close()
