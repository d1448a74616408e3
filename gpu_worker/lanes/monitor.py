"""Metrics of a group, and the health of it and all of its lanes.

The group has the port that a worker would have, so that a probe of a worker need not know about lanes; its
lanes have the port numbers after it.
"""

from __future__ import annotations

import sys
from collections.abc import Collection
from concurrent.futures import ThreadPoolExecutor
from http.client import HTTPException
from typing import TYPE_CHECKING, Final
from urllib.error import HTTPError
from urllib.request import ProxyHandler, build_opener

import orjson

from common.monitoring.collector import group_registry
from common.monitoring.health import HealthChecks
from common.monitoring.http_server import MonitoringServer
from common.monitoring.metrics import GroupMetrics
from common.settings import WorkerSettings
from gpu_worker.lanes.facts import lane_port
from gpu_worker.monitor import cuda_memory

if TYPE_CHECKING:
    from gpu_worker.lanes.group import Group

# Kubernetes waits 3 s for the answer of a readiness probe, and lanes are probed in parallel.
_ASK_TIMEOUT_S: Final = 2.0
_MOST_ANSWER_BYTES: Final = 4096
# Lanes are on this machine: proxies of the environment are ignored.
_OPENER: Final = build_opener(ProxyHandler({}))
_ANYWHERE: Final = {"0.0.0.0": "127.0.0.1", "": "127.0.0.1", "::": "[::1]"}  # noqa: S104 - it is compared


class GroupMonitor:
    """The metrics port of a group; without --metrics-port it does nothing."""

    def __init__(self, settings: WorkerSettings) -> None:
        self._group: Group | None = None
        self._server: MonitoringServer | None = None
        self._lanes: list[str] = []
        # Lanes that have passed the check once, and the process that did so last.
        self._served: dict[int, int | None] = {}
        if not settings.metrics_port:
            return
        host = settings.metrics_host
        host = _ANYWHERE.get(host, f"[{host}]" if ":" in host else host)
        self._lanes = [f"http://{host}:{lane_port(settings, lane)}" for lane in range(settings.lanes)]
        self._asking = ThreadPoolExecutor(4 * settings.lanes, "ask-lanes")
        self._server = MonitoringServer(
            settings.metrics_host,
            settings.metrics_port,
            group_registry(self._read),
            HealthChecks(live=self._why_not_live, ready=self._why_not_ready, started=self._why_not_started),
        )
        self._server.start()

    def watch(self, group: Group) -> None:
        """Report on this group from now on; its model is loaded."""
        self._group = group

    def close(self) -> None:
        """Close the port."""
        if self._server is not None:
            self._server.close()
            self._asking.shutdown(wait=False, cancel_futures=True)

    def _why_not_live(self) -> list[str]:
        group = self._group
        if group is None:  # loading a model may take long; the start-up probe bounds it
            return []
        if group.hangs:
            return ["device"]
        # The group starts a lane that has ended again, and the lane has time for that; then it has to
        # progress.
        served = list(self._served.items())  # other probes write to it meanwhile
        running = [lane for lane, pid in served if pid is not None and pid == group.pid_of(lane)]
        return self._ask(group, "/livez", running)

    def _why_not_started(self) -> list[str]:
        if self._group is None:
            return ["model"]
        return self._ask(self._group, "/startupz", sorted(set(range(len(self._lanes))) - set(self._served)))

    def _why_not_ready(self) -> list[str]:
        if self._group is None:
            return ["model"]
        if self._group.hangs:
            return ["device"]
        return self._ask(self._group, "/readyz", range(len(self._lanes)))

    def _ask(self, group: Group, path: str, lanes: Collection[int]) -> list[str]:
        """Return why lanes fail a check, each reason with its lane's number in front."""
        pids = {lane: group.pid_of(lane) for lane in lanes}
        answers = list(self._asking.map(lambda lane: _reasons(self._lanes[lane] + path), lanes))
        found = dict(zip(lanes, answers, strict=True))
        self._served |= {lane: pids[lane] for lane, reasons in found.items() if not reasons}
        return [f"lane {lane}: {reason}" for lane, reasons in found.items() for reason in reasons]

    def _read(self) -> GroupMetrics:
        if self._group is None:
            return GroupMetrics()
        metrics = self._group.read_metrics()
        if "torch" in sys.modules:
            metrics.cuda_memory_bytes = cuda_memory()
        return metrics


def _reasons(url: str) -> list[str]:
    """Return the reasons for which a lane fails a check, by its own answer; none where it passes."""
    try:
        with _OPENER.open(url, timeout=_ASK_TIMEOUT_S) as answer:
            answer.read(_MOST_ANSWER_BYTES)
        return []
    except HTTPError as error:
        try:
            said = orjson.loads(error.read(_MOST_ANSWER_BYTES))
            return [str(reason) for reason in said["reasons"]] or ["unknown"]
        except (OSError, ValueError, KeyError, TypeError):
            return ["unknown"]
    except (OSError, HTTPException):
        return ["no answer"]
