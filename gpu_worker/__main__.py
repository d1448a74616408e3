"""``python -m gpu_worker``: one worker: a process, or a group of lanes."""

from __future__ import annotations

from gpu_worker.backend import make_backend
from gpu_worker.lanes.group import Group
from gpu_worker.process import leave, run
from gpu_worker.worker import Worker


def main() -> int:
    """Load the engine, then serve until a signal; returns the exit status."""
    return run(
        lambda settings: Worker(settings, make_backend(settings)) if settings.lanes == 1 else Group(settings)
    )


if __name__ == "__main__":
    leave(main())
