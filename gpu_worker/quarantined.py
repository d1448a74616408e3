"""``python -m gpu_worker.quarantined``: a worker that runs suspects (see quarantine.py and suspects.py).

A worker starts it, with its flags and a name under which the suspects' assignments are pending. A line on
stdin announces more suspects. It ends when stdin closes, or without suspects for a while.
"""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Callable

from common.process.orphans import wake_when_parent_ends
from common.settings import WorkerSettings
from gpu_worker.backend import Backend, make_backend
from gpu_worker.monitor import WorkerMonitor
from gpu_worker.process import leave, run
from gpu_worker.worker import Worker


def run_suspects(make: Callable[[WorkerSettings], Backend]) -> int:
    """Load the engine and serve suspects; return the exit status."""
    wake_when_parent_ends()

    def make_worker(settings: WorkerSettings) -> Worker:
        worker = Worker(settings, make(settings), quarantined=True)
        threading.Thread(target=_follow_stdin, args=(worker,), name="stdin", daemon=True).start()
        return worker

    return run(make_worker, WorkerMonitor)


def _follow_stdin(worker: Worker) -> None:
    try:
        while os.read(0, 512):
            worker.look_for_suspects()
    finally:  # the process never outlives the worker that started it
        worker.request_stop(signal.SIGTERM, None)


if __name__ == "__main__":
    leave(run_suspects(make_backend))
