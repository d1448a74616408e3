"""The window of the status figures, and what the heartbeat makes of a hung engine and a lapsed lease."""

from __future__ import annotations

import threading
import time
from collections.abc import Mapping
from typing import Any, cast

import pytest

from common.entries import WorkerId
from common.errors import NameTaken
from common.monitoring.metrics import WorkerMetrics
from common.presence.leases import Renewal, WorkerLease
from common.presence.status import WorkerReport, decode_worker_report
from gpu_worker.engine.interface import EngineStats
from gpu_worker.ownership.heartbeat import WINDOW_S, Heartbeat, StatsWindow, check_name
from tests.waiting import wait_until


def report(window: StatsWindow, now: float) -> WorkerReport:
    return window.report(now, capacity=4, owned=2, draining=False, started_ms=7)


def test_the_window_forgets_what_is_older_than_it() -> None:
    stats = EngineStats()
    window = StatsWindow(stats, 0.0)
    stats.encode.calls, stats.encode.units, stats.encode.busy_s = 10, 40, 0.5
    stats.tokens = 7
    first = report(window, 0.25)
    assert (first.window_s, first.stages["encode"].window_units, first.window_tokens) == (0.25, 40, 7)
    assert first.stages["encode"].window_busy_s == pytest.approx(0.5)
    now = 0.25
    while now < 0.25 + WINDOW_S + 0.5:
        now += 0.25
        last = report(window, now)
        assert last.window_s <= WINDOW_S + 0.25
    assert last.stages["encode"].calls == 10, "cumulative"
    assert (last.stages["encode"].window_calls, last.window_tokens) == (0, 0)


def test_a_report_survives_its_hash() -> None:
    stats = EngineStats(tokens=3, in_flight=2, ready_streams=1, turn_detection_depth=5)
    made = report(StatsWindow(stats, 0.0), 2.5)
    stored = {name.encode(): str(value).encode() for name, value in made.fields().items()}
    assert decode_worker_report({**stored, b"model": b"tiny"}) == made
    assert decode_worker_report({}) is None
    del stored[b"window_s"]
    assert decode_worker_report(stored) is None


class Lease:
    """Counts what the heartbeat does to a lease."""

    def __init__(self) -> None:
        self.renewals = 0
        self.answer = Renewal.HELD
        self.reports: list[Mapping[str, Any]] = []
        self.error: Exception | None = None
        self.failures = 0
        self.replaced = False

    def renew(self, *, begins: bool = False) -> Renewal:
        assert begins == (not self.renewals)
        if self.error is not None:
            self.failures += 1
            raise self.error
        self.renewals += 1
        return self.answer

    def report(self, fields: Mapping[str, Any], *, takes: bool = False) -> bool:
        if self.replaced and not takes:
            return False
        self.reports.append(fields)
        return True


class Beating:
    def __init__(self, lease_s: float = 0.04) -> None:
        self.lease = Lease()
        self.busy_s = 0.0
        self.replaced = threading.Event()
        self.lapsed = threading.Event()
        self.hung: list[float] = []
        self.metrics = WorkerMetrics()
        window = StatsWindow(EngineStats(), 0.0)
        self.heartbeat = Heartbeat(
            lease=cast("WorkerLease", self.lease),
            lease_s=lease_s,
            step_timeout_s=1.0,
            busy_s=lambda: self.busy_s,
            report=lambda: report(window, 1.0),
            agree=lambda: None,
            description={"model": "null"},
            metrics=self.metrics,
            on_replaced=self.replaced.set,
            on_lapsed=self.lapsed.set,
            on_hung=self.hung.append,
        )

    def __enter__(self) -> Beating:
        self.heartbeat.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.heartbeat.stop(5.0)


def test_it_renews_and_reports() -> None:
    with Beating() as beating:
        wait_until(lambda: beating.lease.renewals >= 4)
        assert beating.lease.reports[0]["model"] == "null"
        assert not beating.lapsed.is_set()


@pytest.fixture
def no_beats(monkeypatch: pytest.MonkeyPatch) -> None:
    """Of a lease that is long enough no beat falls due in a test."""
    monkeypatch.setattr("gpu_worker.ownership.heartbeat._MAX_BEAT_S", 1000.0)


@pytest.mark.usefixtures("no_beats")
def test_a_hung_engine_is_reported_and_not_renewed() -> None:
    with Beating(lease_s=4000.0) as beating:
        beating.busy_s = 5.0
        for _ in range(3):
            beating.heartbeat._beat()
        assert beating.hung == [5.0] * 3
        assert beating.lease.renewals == 1


def test_a_lapsed_lease_is_told() -> None:
    with Beating() as beating:
        beating.lease.answer = Renewal.LAPSED
        wait_until(beating.lapsed.is_set)


@pytest.mark.usefixtures("no_beats")
def test_a_process_whose_name_another_one_has_renews_nothing() -> None:
    with Beating(lease_s=4000.0) as beating:
        beating.lease.replaced = True
        beating.heartbeat._beat()
        assert beating.replaced.is_set()
        assert beating.lease.renewals == 1


def test_it_goes_on_after_errors() -> None:
    with Beating() as beating:
        beating.lease.error = ConnectionError("away")
        wait_until(lambda: beating.lease.failures >= 2)
        renewals = beating.lease.renewals
        beating.lease.error = None
        wait_until(lambda: beating.lease.renewals > renewals)


@pytest.mark.usefixtures("no_beats")
def test_the_lease_is_known_to_hold_for_its_time_from_the_renewal_on() -> None:
    with Beating(lease_s=4000.0) as beating:
        now = time.monotonic()
        assert beating.heartbeat.holds_lease(now)
        assert beating.heartbeat.holds_lease(now + 3900.0)
        assert not beating.heartbeat.holds_lease(now + 4000.0)
    assert not Beating().heartbeat.holds_lease(time.monotonic())


def test_a_lapsed_lease_is_counted() -> None:
    with Beating() as beating:
        beating.lease.answer = Renewal.LAPSED
        assert beating.lapsed.wait(60)
        wait_until(lambda: beating.metrics.lease_lapses >= 1)


class _Stored:
    """A lease whose end is read: these ends in turn, then the last one for ever."""

    def __init__(self, *ends_ms: int) -> None:
        self.left = list(ends_ms)

    def end_ms(self) -> int:
        return self.left.pop(0) if len(self.left) > 1 else self.left[0]


@pytest.mark.parametrize(
    ("ends_ms", "taken"),
    [
        ((0,), False),
        ((1500, 1500, 0), False),
        # One renewal: the last one of a process that was killed while Redis stood still.
        ((1500, 1900, 1900, 0), False),
        ((1500, 1900, 1900, 2300), True),
    ],
)
def test_a_name_is_taken_where_its_lease_is_renewed_again_and_again(
    ends_ms: tuple[int, ...], taken: bool
) -> None:
    lease = cast("WorkerLease", _Stored(*ends_ms))
    if taken:
        with pytest.raises(NameTaken):
            check_name(lease, WorkerId("w"), threading.Event())
    else:
        check_name(lease, WorkerId("w"), threading.Event())
