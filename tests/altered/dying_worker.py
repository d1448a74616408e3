"""A worker one of whose threads ends: ``python -m tests.altered.dying_worker FLAGS``.

The environment names the thread (VICTIM) and says how it ends: it raises (RAISES), or it returns. Each
thread that is started is printed as ``thread NAME``.
"""

from __future__ import annotations

import os
import sys
import threading

from gpu_worker.backend import make_backend
from gpu_worker.monitor import WorkerMonitor
from gpu_worker.process import leave, run
from gpu_worker.worker import Worker

VICTIM = "VICTIM"
RAISES = "RAISES"
OTHER = "other"
"""A thread that the worker has not started itself, as those of a library or of smart-turn's pool are."""

_run = threading.Thread.run


def _run_or_die(thread: threading.Thread) -> None:
    sys.stdout.write(f"thread {thread.name}\n")
    sys.stdout.flush()
    if thread.name != os.environ.get(VICTIM):
        _run(thread)
    elif os.environ.get(RAISES):
        raise RuntimeError("a defect")


class _Worker(Worker):
    def run(self) -> int:
        threading.Thread(target=threading.Event().wait, name=OTHER, daemon=True).start()
        return super().run()


if __name__ == "__main__":
    setattr(threading.Thread, "run", _run_or_die)  # noqa: B010 - mypy forbids the plain assignment
    leave(run(lambda settings: _Worker(settings, make_backend(settings)), WorkerMonitor))
