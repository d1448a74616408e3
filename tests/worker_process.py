"""Worker processes for tests, started by the command line that `serve` uses."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path
from types import TracebackType
from typing import Any

from parakeet.child import start_tied
from tests.waiting import wait_until

ROOT = Path(__file__).parents[1]


class WorkerProcess:
    """``python -m gpu_worker`` with the null engine, unless told otherwise. Killed when the test ends."""

    def __init__(
        self, url: str, worker_id: str, log: Path, *, module: str = "gpu_worker", **flags: object
    ) -> None:
        options = {"backend": "null", "lease_ms": 1000, "worker_max_streams": 50, **flags}
        self.worker_id = worker_id
        self._log = log.open("ab")
        self.log_path = log
        command = [
            *(sys.executable, "-m", module, f"--worker-id={worker_id}", "--log-level=debug"),
            *(f"--{name.replace('_', '-')}={value}" for name, value in options.items()),
        ]
        environment = {**os.environ, "PARAKEET_REDIS_URL": url, "PYTHONPATH": str(ROOT)}
        self._process = start_tied(command, environment, output=self._log.fileno())

    def __enter__(self) -> WorkerProcess:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._process.poll() is None:
            self._process.kill()
            self._process.wait()
        self._log.close()

    def ready(self, client: Any, timeout_s: float = 30.0) -> WorkerProcess:
        """Wait until the worker holds its lease."""
        wait_until(
            lambda: client.zscore("px:{0}:workers", self.worker_id) or self._process.poll() is not None,
            timeout_s,
            f"the lease of {self.worker_id}",
        )
        assert self._process.poll() is None, self.log_text()
        return self

    @property
    def pid(self) -> int:
        return self._process.pid

    @property
    def running(self) -> bool:
        return self._process.poll() is None

    def send(self, number: signal.Signals) -> None:
        """Send a signal."""
        self._process.send_signal(number)

    def wait(self, timeout_s: float = 20.0) -> int:
        """Wait for the end; gives the exit status."""
        try:
            return self._process.wait(timeout_s)
        except subprocess.TimeoutExpired:
            raise AssertionError(f"{self.worker_id} still runs:\n{self.log_text()}") from None

    def log_text(self) -> str:
        """What the worker logged."""
        return self.log_path.read_text()
