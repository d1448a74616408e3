"""The metrics port answers scrapes and probes, and nothing else."""

from __future__ import annotations

import socket
from collections.abc import Iterator
from http.client import HTTPConnection

import orjson
import pytest

from common.monitoring.collector import ingress_registry
from common.monitoring.health import HealthChecks
from common.monitoring.http_server import MonitoringServer
from common.monitoring.metrics import IngressMetrics
from tests.waiting import wait_until


class Reasons:
    """Checks whose outcome a test sets."""

    def __init__(self) -> None:
        self.live: list[str] = []
        self.ready: list[str] = []
        self.started: list[str] = []

    def checks(self) -> HealthChecks:
        return HealthChecks(lambda: self.live, lambda: self.ready, lambda: self.started)


@pytest.fixture
def reasons() -> Reasons:
    return Reasons()


@pytest.fixture
def server(reasons: Reasons) -> Iterator[MonitoringServer]:
    server = MonitoringServer("127.0.0.1", 0, ingress_registry(IngressMetrics), reasons.checks())
    server.start()
    yield server
    server.close()


def ask(server: MonitoringServer, path: str, method: str = "GET") -> tuple[int, bytes]:
    connection = HTTPConnection("127.0.0.1", server.port, timeout=10)
    try:
        connection.request(method, path)
        response = connection.getresponse()
        return response.status, response.read()
    finally:
        connection.close()


def test_metrics_are_served_as_text(server: MonitoringServer) -> None:
    status, body = ask(server, "/metrics")
    assert status == 200
    assert b"parakeet_ingress_draining 0.0" in body


@pytest.mark.parametrize(
    ("path", "check", "passed", "failed"),
    [
        ("/livez", "live", "live", "not_live"),
        ("/readyz", "ready", "ready", "not_ready"),
        ("/startupz", "started", "started", "starting"),
    ],
)
def test_probes_tell_the_checks(
    server: MonitoringServer, reasons: Reasons, path: str, check: str, passed: str, failed: str
) -> None:
    assert ask(server, path) == (200, orjson.dumps({"status": passed}))
    setattr(reasons, check, ["redis", "draining"])
    assert ask(server, path) == (503, orjson.dumps({"status": failed, "reasons": ["redis", "draining"]}))


def test_the_health_response_of_nim_is_there_too(server: MonitoringServer, reasons: Reasons) -> None:
    status, body = ask(server, "/v1/health/ready")
    assert (status, orjson.loads(body)["status"]) == (200, "ready")
    reasons.ready = ["draining"]
    status, body = ask(server, "/v1/health/ready")
    assert (status, orjson.loads(body)) == (
        503,
        {"object": "health.response", "message": "draining", "status": "not_ready"},
    )


def test_other_paths_and_methods_are_refused(server: MonitoringServer) -> None:
    assert ask(server, "/")[0] == 404
    assert ask(server, "/metrics", "POST")[0] == 405
    assert ask(server, "/livez", "HEAD") == (200, b"")


def _answers(server: MonitoringServer) -> bool:
    try:
        return ask(server, "/livez")[0] == 200
    except ConnectionError:
        return False  # its connection was one too many


def test_silent_connections_leave_room_for_the_next_scrape_once_they_time_out(
    server: MonitoringServer,
) -> None:
    idle = [socket.create_connection(("127.0.0.1", server.port)) for _ in range(20)]
    try:
        # Those beyond the bound are closed at once.
        idle[-1].settimeout(10)
        assert idle[-1].recv(1) == b""
        # The others are closed when their time is over, and then there is room again.
        idle[0].settimeout(20)
        assert idle[0].recv(1) == b""
        wait_until(lambda: _answers(server), what="room for a scrape")
    finally:
        for connection in idle:
            connection.close()
