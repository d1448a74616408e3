"""A group of lanes that fails when it is told: ``python -m tests.chaos.faulty.misled_group FLAGS``.

SIGUSR1 makes its device hang in the next step, for good.  One of its lanes launches rows of slots that are
not its own when that gets the signal (misled_lane.py).
"""

from __future__ import annotations

import signal
import threading

import gpu_worker.lanes.group as group_module
from common.settings import WorkerSettings
from gpu_worker.engine.steps import Flight, StepFindings
from gpu_worker.lanes.group import Group
from gpu_worker.lanes.monitor import GroupMonitor
from gpu_worker.process import leave, run


class Hanging:
    """Mixed into steps: from the signal on, none comes to its end."""

    hangs = False

    def wait(self, flight: Flight) -> StepFindings:
        if self.hangs:
            threading.Event().wait()
        found: StepFindings = super().wait(flight)  # type: ignore[misc]
        return found


def make(settings: WorkerSettings) -> Group:
    """The group that the settings ask for."""
    group_module.LANE_MODULE = "tests.chaos.faulty.misled_lane"  # type: ignore[misc]
    group = Group(settings)
    steps = group._backend.engine.steps
    kind = type(steps)
    steps.__class__ = type(f"Hanging{kind.__name__}", (Hanging, kind), {})

    def hang(*_: object) -> None:
        steps.hangs = True  # type: ignore[attr-defined]

    signal.signal(signal.SIGUSR1, hang)
    return group


if __name__ == "__main__":
    leave(run(make, GroupMonitor))
