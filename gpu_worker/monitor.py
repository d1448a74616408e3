"""Metrics and health of a worker, served from before its model is loaded."""

from __future__ import annotations

import sys
import time
from typing import TYPE_CHECKING

from common.monitoring.collector import worker_registry
from common.monitoring.families import STAGES
from common.monitoring.health import HealthChecks
from common.monitoring.http_server import MonitoringServer
from common.monitoring.metrics import WorkerMetrics
from common.settings import WorkerSettings

if TYPE_CHECKING:
    from gpu_worker.worker import Worker

_FRAME_S = 0.08


class WorkerMonitor:
    """The metrics port of a worker; without --metrics-port it does nothing.

    A thread of its own answers, so that it also reports an engine that hangs.
    """

    def __init__(self, settings: WorkerSettings) -> None:
        self._settings = settings
        self._worker: Worker | None = None
        self._server: MonitoringServer | None = None
        if settings.metrics_port:
            self._server = MonitoringServer(
                settings.metrics_host,
                settings.metrics_port,
                worker_registry(self._read),
                HealthChecks(
                    live=self._why_not_live, ready=self._why_not_ready, started=self._why_not_started
                ),
            )
            self._server.start()

    def watch(self, worker: Worker) -> None:
        """Report on this worker from now on; its model is loaded."""
        self._worker = worker

    def close(self) -> None:
        """Close the port."""
        if self._server is not None:
            self._server.close()

    def _why_not_live(self) -> list[str]:
        # Loading a model may take long; the start-up probe bounds it.
        worker = self._worker
        if worker is not None and worker.engine_busy_s > self._settings.step_timeout_ms / 1000:
            return ["engine"]
        return []

    def _why_not_started(self) -> list[str]:
        worker = self._worker
        if worker is None:
            return ["model"]
        return [] if worker.serving or worker.draining else ["redis"]

    def _why_not_ready(self) -> list[str]:
        worker = self._worker
        if worker is None or not (worker.serving or worker.draining):
            return self._why_not_started()
        reasons = ["draining"] if worker.draining else []
        if not worker.holds_lease(time.monotonic()):
            reasons.append("lease")
        return reasons

    def _read(self) -> WorkerMetrics:
        worker = self._worker
        if worker is None:
            return WorkerMetrics()
        metrics, stats = worker.metrics, worker.engine_stats
        metrics.slots = worker.capacity
        metrics.measured_streams = worker.measured_streams
        metrics.streams = stats.open_streams
        metrics.ready_streams = stats.ready_streams
        metrics.lease_held = int(worker.holds_lease(time.monotonic()))
        metrics.draining = int(worker.draining)
        metrics.engine_busy_seconds = worker.engine_busy_s
        for name in STAGES:
            stage = getattr(stats, name)
            metrics.stage_calls[name] = stage.calls
            metrics.stage_units[name] = stage.units
            metrics.stage_busy_seconds[name] = stage.busy_s
        metrics.tokens = stats.tokens
        counts = worker.counts()
        for outcome in metrics.smart_turn_verdicts:
            metrics.smart_turn_verdicts[outcome] = int(counts.get(f"smart_turn_{outcome}", 0))
        metrics.audio_seconds = stats.encode.units * _FRAME_S
        metrics.late_chunks = stats.late_chunks
        metrics.backlog_chunks = stats.waiting_chunks
        if "torch" in sys.modules:
            metrics.cuda_memory_bytes = cuda_memory()
        return metrics


def cuda_memory() -> dict[str, int]:
    """Return the bytes of GPU memory that torch counts for this process, which has loaded torch already."""
    import torch

    if not torch.cuda.is_available():
        return {"allocated": 0, "reserved": 0}
    return {"allocated": torch.cuda.memory_allocated(), "reserved": torch.cuda.memory_reserved()}
