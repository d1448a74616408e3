"""Worker processes for tests."""

from __future__ import annotations

from pathlib import Path
from typing import Final

from tests.service_process import ServiceProcess

# The lease of a worker that a test kills or freezes: others wait for its end.
SHORT_LEASE_MS: Final = 1_000


class WorkerProcess(ServiceProcess):
    """``python -m gpu_worker`` with the null engine, unless told otherwise.

    Its lease outlasts every stall of the machine, so that nobody takes its streams while it runs.
    """

    def __init__(
        self,
        url: str,
        worker_id: str,
        log: Path,
        *,
        module: str = "gpu_worker",
        **flags: object,
    ) -> None:
        self.worker_id = worker_id
        options = {
            "backend": "null",
            "lease_ms": 30_000,
            "worker_max_streams": 50,
            "measure_capacity_s": 0,
            **flags,
        }
        super().__init__(module, url, "--worker-id", worker_id, "px:{0}:workers", log, options)
