"""What the crashing worker starts for suspects: the same engine, quarantined."""

from __future__ import annotations

from gpu_worker.quarantined import leave, run
from tests.chaos.crashing_worker import make

if __name__ == "__main__":
    leave(run(make))
