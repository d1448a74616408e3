"""Metrics and health of an ingress, served on --metrics-port."""

from __future__ import annotations

import asyncio
import time
from collections import deque
from collections.abc import Callable
from typing import Final

from common.monitoring.collector import ingress_registry
from common.monitoring.health import HealthChecks, Reasons
from common.monitoring.http_server import MonitoringServer
from common.monitoring.metrics import IngressMetrics

_TICK_S: Final = 0.1
_LAG_WINDOW_S: Final = 60.0
# An event loop that has not run for this long counts as stuck.
_STUCK_S: Final = 10.0


class IngressMonitor:
    """Measures the lag of the event loop, and serves the metrics port; port 0 serves none.

    refresh: updates the gauges of `metrics`. why_not_ready: see `HealthChecks`. Both are called in the port's
    thread, which also reports a stuck loop.
    """

    def __init__(
        self,
        host: str,
        port: int,
        metrics: IngressMetrics,
        refresh: Callable[[IngressMetrics], None],
        why_not_ready: Reasons,
    ) -> None:
        self._metrics = metrics
        self._refresh = refresh
        self._why_not_ready = why_not_ready
        self._ticked = time.monotonic()
        self._started = False
        self._lags: deque[tuple[float, float]] = deque()  # when, and how large; the largest first
        self._server: MonitoringServer | None = None
        if port:
            checks = HealthChecks(
                live=self._why_not_live, ready=self._ready_reasons, started=self._why_not_started
            )
            self._server = MonitoringServer(host, port, ingress_registry(self._read), checks)
            self._server.start()

    def started(self) -> None:
        """Note that the ingress listens."""
        self._started = True

    async def run(self) -> None:
        """Measure the lag until cancelled."""
        loop = asyncio.get_running_loop()
        while True:
            due = loop.time() + _TICK_S
            await asyncio.sleep(_TICK_S)
            self._note(time.monotonic(), max(0.0, loop.time() - due))

    def close(self) -> None:
        """Close the port."""
        if self._server is not None:
            self._server.close()

    def _note(self, now: float, lag_s: float) -> None:
        self._ticked = now
        while self._lags and self._lags[-1][1] <= lag_s:
            self._lags.pop()
        self._lags.append((now, lag_s))
        while self._lags[0][0] < now - _LAG_WINDOW_S:
            self._lags.popleft()

    def _why_not_live(self) -> list[str]:
        return ["event_loop"] if time.monotonic() - self._ticked > _STUCK_S else []

    def _why_not_started(self) -> list[str]:
        return [] if self._started else ["redis"]

    def _ready_reasons(self) -> list[str]:
        return self._why_not_ready() if self._started else self._why_not_started()

    def _read(self) -> IngressMetrics:
        self._refresh(self._metrics)
        lags = list(self._lags)[:1]
        self._metrics.event_loop_lag_seconds = lags[0][1] if lags else 0.0
        return self._metrics
