"""A group of lanes for tests, and the processes of its lanes."""

from __future__ import annotations

import os
import signal
from pathlib import Path
from typing import Any, Self

from common.settings import lane_ids
from tests.service_process import wait_until_stopped
from tests.waiting import wait_until
from tests.worker_process import WorkerProcess


class GroupProcess(WorkerProcess):
    """``python -m gpu_worker --lanes N`` with the null engine, unless told otherwise."""

    def __init__(self, url: str, worker_id: str, log: Path, *, lanes: int = 2, **flags: Any) -> None:
        super().__init__(url, worker_id, log, lanes=lanes, **flags)
        self.lane_names = lane_ids(worker_id, lanes)

    def ready(self, client: Any, timeout_s: float = 400.0) -> Self:
        """Wait until every lane has signed on."""
        for name in self.lane_names:
            wait_until(
                lambda name=name: client.zscore("px:{0}:workers", name) or not self.running,  # type: ignore[misc]
                timeout_s,
                f"the lane {name}",
            )
        assert self.running, self.log_text()
        return self

    @property
    def lane_pids(self) -> dict[str, int]:
        """Processes of lanes by their names."""
        pids = {}
        for child in Path(f"/proc/{self.pid}/task/{self.pid}/children").read_text().split():
            argv = Path(f"/proc/{child}/cmdline").read_bytes().decode().split("\0")
            for argument in argv:
                if argument.startswith("--worker-id="):
                    pids[argument.removeprefix("--worker-id=")] = int(child)
        return pids

    def send_lane(self, name: str, number: signal.Signals) -> int:
        """Send a signal to a lane as `send` does; returns its pid."""
        pid = self.lane_pids[name]
        os.kill(pid, number)
        if number == signal.SIGSTOP:
            wait_until_stopped(pid)
        return pid
