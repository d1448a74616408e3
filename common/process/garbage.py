"""Settings of the garbage collector for a process that holds many streams.

Python scans all objects that are older than a few seconds whenever a quarter as many have come since. With
thousands of streams of some dozen objects each, every such scan keeps all streams waiting for some 80 ms, and
scans repeat while streams open.
"""

from __future__ import annotations

import gc


def collect_rarely(new_objects: int, young: int, middle: int) -> None:
    """Make cyclic collections rare: hardly anything on the hot path makes cycles.

    Objects that are alive now are never scanned again.

    Args:
        new_objects: number of new objects, still alive, that starts a collection of the youngest generation.
        young: number of these collections after which the middle generation is scanned too.
        middle: number of those after which all objects are scanned.
    """
    gc.collect()
    gc.freeze()
    gc.set_threshold(new_objects, young, middle)
