"""``python -m gpu_worker``: runs one worker, which is a process or a group of lanes."""

from __future__ import annotations

from common.process.standard_streams import open_missing
from common.settings import parse_or_exit
from gpu_worker.backend import make_backend
from gpu_worker.lanes.group import Group
from gpu_worker.lanes.monitor import GroupMonitor
from gpu_worker.monitor import WorkerMonitor
from gpu_worker.process import leave, run
from gpu_worker.worker import Worker


def main() -> int:
    """Load the engine, then serve until a signal; return the exit status."""
    open_missing()
    if parse_or_exit("worker").lanes > 1:
        return run(Group, GroupMonitor)
    return run(lambda settings: Worker(settings, make_backend(settings)), WorkerMonitor)


if __name__ == "__main__":
    leave(main())
