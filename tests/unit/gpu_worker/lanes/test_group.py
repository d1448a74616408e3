"""A group that starts its lanes; the lanes here do nothing."""

from __future__ import annotations

import errno
import subprocess
import time
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import pytest

from common.settings import parse
from gpu_worker.lanes.group import Group

_Process = subprocess.Popen


class Starts:
    """Stands for `subprocess.Popen`: the first start fails, as in a container at its limit of processes."""

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


def test_a_lane_that_cannot_be_started_is_tried_again_and_ends_no_other(starts: Starts) -> None:
    group = Group(replace(parse("worker", ["--backend", "null"], {}), lanes=2))
    assert group._look(None) is None
    assert [group.pid_of(lane) is None for lane in (0, 1)] == [True, False]
    deadline = time.monotonic() + 20
    while group.pid_of(0) is None and time.monotonic() < deadline:
        assert group._look(None) is None
    assert {group.pid_of(0), group.pid_of(1)} == {process.pid for process in starts.started}
    assert starts.asked == 3
