"""What the crashing worker starts for suspects: the same engine, quarantined."""

from __future__ import annotations

from gpu_worker.process import leave
from gpu_worker.quarantined import run_suspects
from tests.chaos.faulty.crashing_worker import make

if __name__ == "__main__":
    leave(run_suspects(make))
