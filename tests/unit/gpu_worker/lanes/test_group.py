"""A group that starts its lanes; the lanes here do nothing."""

from __future__ import annotations

import errno
import logging
import signal
import subprocess
import time
from collections.abc import Iterator
from dataclasses import replace
from typing import Any
from unittest.mock import Mock

import pytest

from common.settings import parse
from gpu_worker.lanes import group as group_module
from gpu_worker.lanes.group import Group
from gpu_worker.worker import EXIT_FAILED
from tests.waiting import wait_until

_Process = subprocess.Popen


class Starts:
    """Stands for `subprocess.Popen`; the first start fails, as in a container at its limit of processes."""

    def __init__(self) -> None:
        self.asked = 0
        self.started: list[subprocess.Popen[bytes]] = []

    def __call__(self, argv: list[str], **_: Any) -> subprocess.Popen[bytes]:
        self.asked += 1
        if self.asked == 1:
            raise BlockingIOError(errno.EAGAIN, "Resource temporarily unavailable")
        self.started.append(_Process(["sleep", "60"]))
        return self.started[-1]


@pytest.fixture
def starts(monkeypatch: pytest.MonkeyPatch) -> Iterator[Starts]:
    starts = Starts()
    monkeypatch.setattr(subprocess, "Popen", starts)
    yield starts
    for process in starts.started:
        process.kill()
        process.wait()


def started_group() -> Group:
    """A group of two lanes; lane 1 runs."""
    group = Group(replace(parse("worker", ["--backend", "null"], {}), lanes=2))
    assert group._look(None) is None
    return group


def stop_serving(group: Group, lane: int) -> None:
    """What the group does when a lane sends what cannot be."""
    port = group._lanes[lane].port
    assert port is not None
    port.close()


def ended(group: Group, process: subprocess.Popen[bytes]) -> bool:
    """Whether a process has ended, after one more look of the group at its lanes."""
    assert group._look(None) is None
    return process.poll() is not None


def test_a_lane_that_cannot_be_started_is_tried_again_and_ends_no_other(starts: Starts) -> None:
    group = started_group()
    assert [group.pid_of(lane) is None for lane in (0, 1)] == [True, False]
    deadline = time.monotonic() + 90
    while group.pid_of(0) is None and time.monotonic() < deadline:
        assert group._look(None) is None
    assert {group.pid_of(0), group.pid_of(1)} == {process.pid for process in starts.started}
    assert starts.asked == 3


def test_a_stopped_lane_that_is_served_no_more_is_killed_and_started_again(
    starts: Starts, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(group_module, "HAND_OVER_S", 0.1)
    group = started_group()
    (stopped,) = starts.started
    stopped.send_signal(signal.SIGSTOP)
    stop_serving(group, 1)
    wait_until(lambda: ended(group, stopped), 60, "the end of the lane")
    assert stopped.returncode == -signal.SIGKILL
    wait_until(lambda: ended(group, stopped) and group.pid_of(1) is not None, 60, "another lane 1")
    assert group.pid_of(1) != stopped.pid


@pytest.mark.usefixtures("starts")
def test_a_lane_is_killed_once() -> None:
    group, process = started_group(), Mock()
    lane = group_module._Lane(1, Mock(), Mock(), process=process, port=Mock(gone=True))
    for now_s in range(60):
        group._kill_overdue(lane, now_s)
    process.kill.assert_called_once()


def test_a_lane_that_is_served_no_more_has_time_to_give_its_streams_back(
    starts: Starts, caplog: pytest.LogCaptureFixture
) -> None:
    group = started_group()
    (lane,) = starts.started
    stop_serving(group, 1)
    for _ in range(2):
        assert group._look(None) is None
    assert group.pid_of(1) == lane.pid
    lane.send_signal(signal.SIGTERM)
    with caplog.at_level(logging.ERROR):
        wait_until(lambda: ended(group, lane) and "lane 1 ended" in caplog.text, 60, "the end of the lane")
    assert f"lane 1 ended with status -{int(signal.SIGTERM)}" in caplog.text


def test_lanes_that_do_not_stop_in_time_are_killed(starts: Starts) -> None:
    group = started_group()
    (stopped,) = starts.started
    stopped.send_signal(signal.SIGSTOP)
    group.request_stop(signal.SIGTERM, None)
    assert group._look(None) is None
    assert group._look(time.monotonic() - 1) == EXIT_FAILED
    assert stopped.wait(60) == -signal.SIGKILL
