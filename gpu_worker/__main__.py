"""``python -m gpu_worker``: one worker process."""

from __future__ import annotations

from gpu_worker.backend import make_backend
from gpu_worker.process import leave, run
from gpu_worker.worker import Worker


def main() -> int:
    """Load the engine, then serve until a signal; gives the exit status."""
    return run(lambda settings: Worker(settings, make_backend(settings)))


if __name__ == "__main__":
    leave(main())
