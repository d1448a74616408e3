"""When a process that holds many streams looks for garbage in cycles.

Python looks through all objects that are older than a few seconds whenever a quarter as many have come since:
with thousands of streams, which are some dozen objects each, every such look keeps all of them waiting for
some 80 ms, and it comes again and again while streams open.
"""

from __future__ import annotations

import gc


def collect_rarely(new_objects: int, young: int, middle: int) -> None:
    """Keep the cyclic collector from the hot path, where next to nothing makes cycles.

    What is alive now stays alive, and is not looked at again.

    Args:
        new_objects: made and not yet gone, after which cycles are looked for among them.
        young: so many of these collections, after which what has outlived one is looked through too.
        middle: so many of those, after which all objects are looked through.
    """
    gc.collect()
    gc.freeze()
    gc.set_threshold(new_objects, young, middle)
