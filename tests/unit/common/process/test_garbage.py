"""The collector in processes that hold many streams; in a process of its own, whose collector it is."""

from __future__ import annotations

import subprocess
import sys

_SCRIPT = """
import gc
from common.process.garbage import collect_rarely

class Knot:
    def __init__(self):
        self.own = self

gc.disable()
lost, kept = Knot(), Knot()
del lost
collect_rarely(100, 2, 3)
gc.enable()
print(gc.get_threshold() == (100, 2, 3), any(one is kept for one in gc.get_objects()))
print(gc.get_freeze_count() > 0)
print(sum(isinstance(one, Knot) for one in gc.get_objects()), gc.unfreeze())
print(sum(isinstance(one, Knot) for one in gc.get_objects()))
for _ in range(1_000):
    Knot()
print(sum(isinstance(one, Knot) for one in gc.get_objects()) < 1_000)
"""


def test_what_is_alive_is_not_looked_at_again_and_cycles_still_go() -> None:
    done = subprocess.run([sys.executable, "-c", _SCRIPT], capture_output=True, text=True, check=True)
    # The thresholds are set; of two cycles the lost one is gone, and the other is frozen, so not listed.
    assert done.stdout.splitlines() == ["True False", "True", "0 None", "1", "True"]
