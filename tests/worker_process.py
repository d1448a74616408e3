"""Worker processes for tests."""

from __future__ import annotations

from pathlib import Path

from tests.service_process import ServiceProcess


class WorkerProcess(ServiceProcess):
    """``python -m gpu_worker`` with the null engine, unless told otherwise."""

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
            "lease_ms": 1000,
            "worker_max_streams": 50,
            "measure_capacity_s": 0,
            **flags,
        }
        super().__init__(module, url, "--worker-id", worker_id, "px:{0}:workers", log, options)
