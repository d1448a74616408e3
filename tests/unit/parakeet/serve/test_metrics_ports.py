"""Metrics ports that are counted up: of whom, how far, and what is refused before anything is started."""

from __future__ import annotations

import socket
from dataclasses import replace

import pytest

from common.errors import SettingsError
from common.process.machine import Machine
from common.settings import ServeSettings, WorkerSettings, parse
from parakeet.serve import supervisor
from parakeet.serve.metrics_ports import MetricsPorts
from parakeet.serve.readiness import PortTaken
from parakeet.serve.supervisor import Supervisor
from parakeet.serve.worker_plan import plan_workers
from tests.ports import HOST, ports_in_a_row


def planned(*flags: str, lanes: int = 1, workers: int = 2) -> tuple[ServeSettings, list[WorkerSettings]]:
    settings = parse("serve", ["--port=0", "--ws-port=1", "--status-port=0", *flags], {})
    return settings, [replace(settings.worker, lanes=lanes)] * workers


def test_ingresses_come_first_and_a_group_of_lanes_has_one_more_than_lanes() -> None:
    ports = MetricsPorts(*planned("--num-ingress=3", "--metrics-port=9100", lanes=4))
    assert [ports.of_ingress(index) for index in range(3)] == [9100, 9101, 9102]
    assert [ports.of_worker(index) for index in range(2)] == [9103, 9108]
    alone = MetricsPorts(*planned("--num-ingress=3", "--metrics-port=9100"))
    assert [alone.of_worker(index) for index in range(2)] == [9103, 9104]


def test_without_a_metrics_port_nobody_has_one() -> None:
    ports = MetricsPorts(*planned(lanes=4))
    ports.check()
    assert (ports.of_ingress(1), ports.of_worker(1)) == (0, 0)


def test_ports_beyond_the_last_one_are_refused_with_the_highest_that_fits() -> None:
    with pytest.raises(SettingsError, match=r"got 65527, but takes at most 65525: 11 ports are counted"):
        MetricsPorts(*planned("--metrics-port=65527", lanes=4)).check()


@pytest.mark.parametrize("flag", ["--port", "--ws-port", "--status-port"])
def test_a_port_for_clients_among_them_is_refused(flag: str) -> None:
    with pytest.raises(SettingsError, match=f"{flag} got 9102, but takes none of 9100 to 9102"):
        MetricsPorts(*planned("--metrics-port=9100", f"{flag}=9102")).check()


def test_one_that_another_program_has_is_refused() -> None:
    first = ports_in_a_row(3)
    ports = MetricsPorts(*planned(f"--metrics-port={first}"))
    with (
        socket.create_server((HOST, first + 2)),
        pytest.raises(PortTaken, match=rf"{first} \(counted up\) got"),
    ):
        ports.check()


def test_lanes_that_serve_chooses_are_counted_before_anything_is_started(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    flags = ["--port=0", "--ws-port=1", "--status-port=0", "--max-num-streams=8000", "--metrics-port=65531"]
    machine = Machine(16, 1 << 36)
    settings = parse("serve", flags, {})
    assert plan_workers(settings, 1, machine)[0].lanes == 4
    monkeypatch.setattr(supervisor, "count_gpus", lambda device: 1)
    monkeypatch.setattr(supervisor, "check_port_free", lambda *_: None)
    monkeypatch.setattr(supervisor, "Machine", type("Here", (), {"here": staticmethod(lambda: machine)}))
    with pytest.raises(SettingsError, match="--metrics-port got 65531, but takes at most 65530: 6 ports"):
        Supervisor(settings)._check()
