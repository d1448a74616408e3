"""A lane that launches what is not its own after a SIGUSR1, and writes nonsense after a SIGUSR2.

A group starts it (misled_group.py).
"""

from __future__ import annotations

import os
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
    """From the one signal on its rows are of the slots behind its own; from the other its flights are noise.

    The noise may say that requests come first, which never come: then the group waits for the lane for ever,
    and the lane for the group until --step-timeout-ms.
    """

    misled = lies = False

    def launch(self, rows_FB: NDArray[np.int32], table_BM: NDArray[np.int32]) -> Flight:
        if self.misled:
            rows_FB[Field.SLOT] += self.shape.num_slots
        if self.lies:
            return self._launch_noise(rows_FB.shape[1])
        return super().launch(rows_FB, table_BM)

    def _launch_noise(self, num_rows: int) -> Flight:
        number = self._num_launched
        buffer = self._area.flight(number)
        for part in (buffer._words, buffer._stages, buffer._rows, buffer._table, buffer._resets):
            part.view(np.uint8)[:] = np.frombuffer(os.urandom(part.nbytes), np.uint8)
        self._num_launched = self._area.launched = number + 1
        self._group_bell.ring()
        return Flight(num_rows, number)


def main() -> int:
    fds = tuple(map(int, sys.argv.pop(1).split(",")))

    def make(settings: WorkerSettings) -> Worker:
        worker = make_lane(settings, fds)
        steps = worker._backend.engine.steps
        assert isinstance(steps, LaneSteps)
        steps.__class__ = Misled

        def mislead(*_: object) -> None:
            steps.misled = True  # type: ignore[attr-defined]

        def lie(*_: object) -> None:
            steps.lies = True  # type: ignore[attr-defined]

        signal.signal(signal.SIGUSR1, mislead)
        signal.signal(signal.SIGUSR2, lie)
        return worker

    return run(make, WorkerMonitor)


if __name__ == "__main__":
    leave(main())
