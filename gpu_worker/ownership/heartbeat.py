"""The heartbeat of a worker: renews its lease, and writes the hash that the status line reads.

It has a thread and a connection of its own, so that neither a busy engine nor a slow reply delays it. It
renews the lease only while the engine does not hang: a worker that cannot decode must lose its streams.
"""

from __future__ import annotations

import logging
import threading
import time
from collections import deque
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Final

from common.entries import WorkerId
from common.errors import NameTaken
from common.monitoring.families import STAGES
from common.monitoring.metrics import WorkerMetrics
from common.presence.leases import Renewal, WorkerLease
from common.presence.status import StageReport, WorkerReport
from common.redis.clients import REDIS_ERROR
from common.redis.outages import OUTAGES
from gpu_worker.engine.interface import EngineStats, StageStats
from gpu_worker.hang import HangWatch
from gpu_worker.part import Part

logger = logging.getLogger(__name__)

# Timings and rates of the status line cover the last WINDOW_S.
WINDOW_S: Final = 5.0
_MAX_BEAT_S: Final = 1.0
# A process that lives renews its lease twice within this time, however long the lease is.
_TWO_BEATS_S: Final = 2.5
_LOOK_S: Final = 0.1


@dataclass(frozen=True, slots=True)
class _Reading:
    """The engine's cumulative counters at a time (monotonic seconds)."""

    at: float
    stages: tuple[tuple[int, int, float], ...]
    tokens: int


class StatsWindow:
    """Turns the engine's cumulative counters into those of the last WINDOW_S. For one thread."""

    def __init__(self, stats: EngineStats, now: float) -> None:
        self._stats = stats
        self._readings: deque[_Reading] = deque([self._read(now)])

    def _read(self, now: float) -> _Reading:
        return _Reading(
            now,
            tuple((stage.calls, stage.units, stage.busy_s) for stage in self._stages()),
            self._stats.tokens,
        )

    def _stages(self) -> tuple[StageStats, ...]:
        stats = self._stats
        return (stats.turn_detection, stats.pre_encode, stats.encode, stats.decode)

    def report(
        self, now: float, *, capacity: int, owned: int, draining: bool, started_ms: int
    ) -> WorkerReport:
        """Return the worker's report, with the counters of the window that ends now."""
        newest = self._read(now)
        readings = self._readings
        readings.append(newest)
        # One reading at or before the window's start is kept, so that the window is never too short.
        while len(readings) > 2 and readings[1].at <= now - WINDOW_S:
            readings.popleft()
        oldest = readings[0]
        stages = {
            name: StageReport(new[0], new[0] - old[0], new[1] - old[1], new[2] - old[2])
            for name, new, old in zip(STAGES, newest.stages, oldest.stages, strict=True)
        }
        stats = self._stats
        return WorkerReport(
            capacity=capacity,
            owned=owned,
            draining=draining,
            started_ms=started_ms,
            window_s=newest.at - oldest.at,
            stages=stages,
            window_tokens=newest.tokens - oldest.tokens,
            # An idle engine keeps the size of its last step.
            in_flight=stats.in_flight if any(stage.window_calls for stage in stages.values()) else 0,
            ready_encode=stats.ready_streams,
            # All engines decode a chunk in the step that encodes it: no chunk waits in between.
            ready_decode=0,
            turn_detection_depth=stats.turn_detection_depth,
            turn_detection_streams=stats.turn_detection_streams,
        )


def check_name(lease: WorkerLease, worker: WorkerId, stop: threading.Event) -> None:
    """Check that no live process is the worker of this name, before it is taken.

    The lease of a process that was killed may hold, but its end does not move any more. It may move once,
    where Redis stood still and had the last renewal still to read.

    Raises NameTaken, and the Redis client's errors.
    """
    end_ms, deadline, moves = lease.end_ms(), time.monotonic() + _TWO_BEATS_S, 0
    while end_ms and time.monotonic() < deadline and not stop.wait(_LOOK_S):
        last_ms, end_ms = end_ms, lease.end_ms()
        moves += end_ms > last_ms
        if moves > 1:
            raise NameTaken(worker)


class Heartbeat(Part):
    """Renews the lease and writes the report, a few times in each lease.

    busy_s: returns how long the engine's turn has taken so far. report: makes the present report.
    agree: called with every beat; raises SettingsMismatch, which ends the worker, where the cluster has moved
        to another model.
    description: further fields of the hash, which describe the backend.
    counts: returns further counters of the hash, at every beat.
    on_replaced: called when another process has taken the worker's name; nothing is renewed then.
    on_lapsed: called when a renewal found that the lease had run out. on_hung: called when a turn of the
        engine has taken longer than `step_timeout_s`; the lease is then no longer renewed.

    An error other than Redis's ends the thread, and so the worker: without a lease it would go on to claim
    streams that other workers take from it.
    """

    def __init__(
        self,
        *,
        lease: WorkerLease,
        lease_s: float,
        step_timeout_s: float,
        busy_s: Callable[[], float],
        report: Callable[[], WorkerReport],
        agree: Callable[[], None],
        description: Mapping[str, str],
        counts: Callable[[], Mapping[str, int | float]] = dict,
        metrics: WorkerMetrics,
        on_replaced: Callable[[], None],
        on_lapsed: Callable[[], None],
        on_hung: Callable[[float], None],
    ) -> None:
        super().__init__("heartbeat")
        self._lease = lease
        self._lease_s = lease_s
        self._held_until = 0.0
        self._metrics = metrics
        self._period_s = min(lease_s / 4, _MAX_BEAT_S)
        self._watch = HangWatch(self._period_s, step_timeout_s)
        self._busy_s = busy_s
        self._report = report
        self._agree = agree
        self._description = dict(description)
        self._counts = counts
        self._on_replaced = on_replaced
        self._on_lapsed = on_lapsed
        self._on_hung = on_hung

    def start(self) -> None:
        """Take the worker's name with the first heartbeat, then start the thread.

        Raises the Redis client's errors.
        """
        self._write(takes=True)
        self._renew(begins=True)
        self._watch.rests()
        super().start()

    def holds_lease(self, now: float) -> bool:
        """Return whether the lease is known to hold at this time (monotonic seconds)."""
        return now < self._held_until

    def _renew(self, *, begins: bool = False) -> Renewal:
        asked = time.monotonic()  # Redis counts from a later moment
        renewal = self._lease.renew(begins=begins)
        self._held_until = asked + self._lease_s
        return renewal

    def _run(self) -> None:
        while not self._stop.wait(self._period_s):
            self._beat()
            self._watch.rests()

    def _beat(self) -> None:
        busy_s = self._busy_s()
        if self._watch.hangs(busy_s):
            self._on_hung(busy_s)
            return
        try:
            self._agree()
            # In this order, so that a worker with a lease has a report: without one it takes no stream.
            if not self._write():
                self._on_replaced()
                return
            renewal = self._renew()
        except (REDIS_ERROR, OSError) as error:
            OUTAGES.log_retry(logger, "heartbeat failed: %s", error)
            return
        if renewal is not Renewal.HELD:
            logger.warning("the lease had lapsed (%s)", renewal.name.lower())
            self._metrics.lease_lapses += 1
            self._on_lapsed()

    def _write(self, *, takes: bool = False) -> bool:
        fields = {**self._report().fields(), **self._counts(), **self._description}
        return self._lease.report(fields, takes=takes)
