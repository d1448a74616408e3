"""A lane that launches what is not its own after a SIGUSR1; a group starts it (misled_group.py)."""

from __future__ import annotations

import signal
import sys

import numpy as np
from numpy.typing import NDArray

from common.settings import WorkerSettings
from gpu_worker.engine.steps import Field, Flight
from gpu_worker.lanes.lane import make_lane
from gpu_worker.lanes.steps import LaneSteps
from gpu_worker.monitor import WorkerMonitor
from gpu_worker.process import leave, run
from gpu_worker.worker import Worker


class Misled(LaneSteps):
    """From the signal on its rows are of the slots behind its own."""

    misled = False

    def launch(self, rows_FB: NDArray[np.int32], table_BM: NDArray[np.int32]) -> Flight:
        if self.misled:
            rows_FB[Field.SLOT] += self.shape.num_slots
        return super().launch(rows_FB, table_BM)


def main() -> int:
    fds = tuple(map(int, sys.argv.pop(1).split(",")))

    def make(settings: WorkerSettings) -> Worker:
        worker = make_lane(settings, fds)
        steps = worker._backend.engine.steps
        assert isinstance(steps, LaneSteps)
        steps.__class__ = Misled

        def mislead(*_: object) -> None:
            steps.misled = True  # type: ignore[attr-defined]

        signal.signal(signal.SIGUSR1, mislead)
        return worker

    return run(make, WorkerMonitor)


if __name__ == "__main__":
    leave(main())
