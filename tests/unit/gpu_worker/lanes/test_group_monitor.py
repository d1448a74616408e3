"""A group's port tells of its device and of all of its lanes."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from http.client import HTTPConnection
from typing import Any
from urllib.error import HTTPError
from urllib.request import urlopen

import pytest
from prometheus_client import CollectorRegistry

from common.monitoring.health import HealthChecks
from common.monitoring.http_server import MonitoringServer
from common.monitoring.metrics import GroupMetrics
from common.settings import parse
from gpu_worker.lanes.facts import lane_port
from gpu_worker.lanes.monitor import GroupMonitor
from tests.ports import ports_in_a_row


class FakeGroup:
    """A group as its monitor sees it."""

    def __init__(self) -> None:
        self.hangs = False
        self.pids: list[int | None] = [1, 2]

    def pid_of(self, lane: int) -> int | None:
        return self.pids[lane]

    def read_metrics(self) -> GroupMetrics:
        metrics = GroupMetrics()
        metrics.lanes = len([pid for pid in self.pids if pid is not None])
        return metrics


class FakeLane:
    """A lane's port, whose checks fail for what is told."""

    def __init__(self, port: int) -> None:
        self.reasons: dict[str, list[str]] = {"live": [], "ready": [], "started": []}
        checks = HealthChecks(*(lambda name=name: self.reasons[name] for name in self.reasons))
        self._server = MonitoringServer("127.0.0.1", port, CollectorRegistry(), checks)
        self._server.start()

    def end(self) -> None:
        self._server.close()


class Watched:
    """A monitor over a group and two lanes."""

    def __init__(self) -> None:
        port = ports_in_a_row(3)
        settings = replace(parse("worker", [], {}), lanes=2, metrics_port=port, metrics_host="127.0.0.1")
        self.port, self.group = port, FakeGroup()
        self.monitor = GroupMonitor(settings)
        self.lanes = [FakeLane(lane_port(settings, lane)) for lane in (0, 1)]

    def probe(self, path: str) -> tuple[int, str]:
        try:
            with urlopen(f"http://127.0.0.1:{self.port}{path}", timeout=30) as answer:
                return answer.status, ""
        except HTTPError as error:
            return error.code, error.read().decode()

    def watch(self) -> None:
        group: Any = self.group
        self.monitor.watch(group)


@pytest.fixture
def watched() -> Iterator[Watched]:
    made = Watched()
    yield made
    made.monitor.close()
    for lane in made.lanes:
        lane.end()


def test_a_group_that_loads_its_model_is_alive_and_not_started(watched: Watched) -> None:
    assert watched.probe("/livez")[0] == 200
    for path in ("/startupz", "/readyz"):
        status, said = watched.probe(path)
        assert status == 503
        assert '"model"' in said


def test_a_group_is_as_its_lanes_are(watched: Watched) -> None:
    watched.watch()
    watched.lanes[1].reasons["started"] = ["redis"]
    assert watched.probe("/startupz") == (503, '{"status":"starting","reasons":["lane 1: redis"]}')
    watched.lanes[1].reasons["started"] = []
    assert watched.probe("/startupz")[0] == watched.probe("/readyz")[0] == watched.probe("/livez")[0] == 200
    watched.lanes[0].reasons["ready"] = ["draining", "lease"]
    status, said = watched.probe("/readyz")
    assert status == 503
    assert '["lane 0: draining","lane 0: lease"]' in said
    watched.lanes[1].reasons["live"] = ["engine"]
    status, said = watched.probe("/livez")
    assert status == 503
    assert '["lane 1: engine"]' in said


def test_a_lane_that_ended_is_no_reason_to_end_its_group(watched: Watched) -> None:
    watched.watch()
    assert watched.probe("/readyz")[0] == 200
    watched.lanes[0].end()
    status, said = watched.probe("/livez")
    assert status == 503
    assert '["lane 0: no answer"]' in said
    for pid in (None, 3):  # another one is on its way
        watched.group.pids[0] = pid
        assert watched.probe("/livez")[0] == 200
    assert watched.probe("/readyz")[0] == 503
    assert watched.probe("/startupz")[0] == 200, "it had started"


def test_lanes_are_asked_past_proxies(watched: Watched, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("http_proxy", "all_proxy"):
        monkeypatch.setenv(name, "http://127.0.0.1:9")
    monkeypatch.delenv("no_proxy", raising=False)
    monkeypatch.delenv("NO_PROXY", raising=False)
    # The library reads the environment once a process.
    monkeypatch.setattr("urllib.request._opener", None)
    watched.watch()
    connection = HTTPConnection("127.0.0.1", watched.port, timeout=30)
    connection.request("GET", "/readyz")
    assert connection.getresponse().read() == b'{"status":"ready"}'
    connection.close()


def test_a_device_that_hangs_is_told_whatever_lanes_say(watched: Watched) -> None:
    watched.watch()
    watched.group.hangs = True
    for path in ("/livez", "/readyz"):
        status, said = watched.probe(path)
        assert status == 503
        assert '"device"' in said


def test_a_group_shows_its_metrics(watched: Watched) -> None:
    watched.watch()
    with urlopen(f"http://127.0.0.1:{watched.port}/metrics") as answer:
        assert b"\nparakeet_group_lanes 2.0\n" in answer.read()
