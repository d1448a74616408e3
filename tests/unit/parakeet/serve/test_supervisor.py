"""What the supervisor restarts and kills, and when: its clock is the test's."""

from __future__ import annotations

import errno
from dataclasses import dataclass, field
from itertools import pairwise
from typing import cast

import pytest

from common.process.backoff import FIRST_BACKOFF_S, STEADY_AFTER_S
from common.settings import parse
from parakeet.serve.child import Child, Launch
from parakeet.serve.embedded_redis import EmbeddedRedis, NoRedisServer
from parakeet.serve.supervisor import Supervisor, _Signals


@dataclass
class Clock:
    now: float = 1000.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    clock = Clock()
    monkeypatch.setattr("parakeet.serve.supervisor.time.monotonic", clock)
    return clock


@dataclass
class FakeRedis:
    """An embedded server that dies when it is told to, and whose next starts may fail."""

    clock: Clock
    returncode: int | None = None
    num_failing_starts: int = 0
    started_at: list[float] = field(default_factory=list)

    def start(self) -> None:
        self.started_at.append(self.clock.now)
        # One that did not come up is no process that has ended.
        self.returncode = None
        if self.num_failing_starts:
            self.num_failing_starts -= 1
            raise NoRedisServer("It did not come up.")

    def exited(self) -> int | None:
        return self.returncode

    def log_tail(self) -> str:
        return ""


def supervisor_of(server: FakeRedis) -> Supervisor:
    supervisor = Supervisor(parse("serve", [], {}))
    supervisor._embedded = cast(EmbeddedRedis, server)
    return supervisor


def mend_until(supervisor: Supervisor, server: FakeRedis, num_starts: int) -> None:
    """Let the supervisor look every 0.1 s until the server has been started so often."""
    supervisor._mend_redis(server.clock.now)
    while len(server.started_at) < num_starts:
        server.clock.now = round(server.clock.now + 0.1, 1)
        supervisor._mend_redis(server.clock.now)


def wait_after_death(supervisor: Supervisor, server: FakeRedis) -> float:
    """Let the server die; return the seconds until it was started again."""
    server.returncode, died_at = 1, server.clock.now
    mend_until(supervisor, server, len(server.started_at) + 1)
    return round(server.clock.now - died_at, 1)


def test_a_redis_that_dies_at_once_is_waited_for_twice_as_long_each_time(clock: Clock) -> None:
    server = FakeRedis(clock)
    supervisor = supervisor_of(server)
    waits = [wait_after_death(supervisor, server) for _ in range(3)]
    assert waits == [FIRST_BACKOFF_S * factor for factor in (1, 2, 4)]


def test_a_steady_run_of_redis_resets_its_back_off(clock: Clock) -> None:
    server = FakeRedis(clock)
    supervisor = supervisor_of(server)
    for _ in range(3):
        wait_after_death(supervisor, server)
    clock.now += STEADY_AFTER_S
    assert wait_after_death(supervisor, server) == FIRST_BACKOFF_S


def test_a_redis_that_does_not_start_is_tried_again_after_twice_the_time(clock: Clock) -> None:
    server = FakeRedis(clock)
    supervisor = supervisor_of(server)
    clock.now += STEADY_AFTER_S
    server.returncode, server.num_failing_starts = 1, 3
    mend_until(supervisor, server, num_starts=4)
    gaps = [round(later - before, 1) for before, later in pairwise(server.started_at)]
    assert gaps == [FIRST_BACKOFF_S * factor for factor in (2, 4, 8)]


@dataclass
class StoppingSignals:
    """Lets time pass instead of waiting, until a signal to stop comes at some time."""

    clock: Clock
    stops_at: float

    @property
    def stop_requests(self) -> int:
        return int(self.clock.now >= self.stops_at)

    def wait(self, timeout_s: float | None) -> None:
        self.clock.now += self.stops_at if timeout_s is None else max(timeout_s, 0.01)


def test_a_child_that_the_system_has_no_room_for_ends_no_other(
    clock: Clock, monkeypatch: pytest.MonkeyPatch
) -> None:
    tried_at: list[float] = []

    def start(*_: object, **__: object) -> None:
        tried_at.append(clock.now)
        raise BlockingIOError(errno.EAGAIN, "Resource temporarily unavailable")

    monkeypatch.setattr("parakeet.serve.child.start_tied", start)
    supervisor = Supervisor(parse("serve", [], {}))
    child = Child("worker 0", lambda: Launch("w", (), {}))
    child.schedule_restart(1)
    supervisor._workers.append(child)
    supervisor._keep_running(cast(_Signals, StoppingSignals(clock, clock.now + 10)))
    assert len(tried_at) > 1


class StoppingChild(Child):
    """A child that ends so many seconds after SIGTERM."""

    def __init__(self, clock: Clock, needs_s: float) -> None:
        super().__init__("worker 0", lambda: Launch("w", (), {}))
        self._clock = clock
        self.ends_at = clock.now + needs_s
        self.killed = False

    @property
    def running(self) -> bool:
        return not self.killed and self._clock.now < self.ends_at

    def kill(self) -> None:
        self.killed = True


@dataclass
class FakeSignals:
    """Lets time pass instead of waiting; no signal comes."""

    clock: Clock

    def wait(self, timeout_s: float) -> None:
        self.clock.now += min(timeout_s, 0.1)


@pytest.mark.parametrize(("needs_s", "killed"), [(29.0, False), (30.5, True)])
def test_a_child_is_killed_when_drain_and_margin_are_over(clock: Clock, needs_s: float, killed: bool) -> None:
    supervisor = Supervisor(parse("serve", ["--drain-timeout-s", "7"], {}))
    child = StoppingChild(clock, 7 + needs_s)
    supervisor._stop_children([child], lambda: False, cast(_Signals, FakeSignals(clock)))
    assert child.killed is killed
