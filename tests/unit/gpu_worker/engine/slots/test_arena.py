"""Places of an arena: none is lost, none is given twice."""

from __future__ import annotations

import numpy as np
import pytest

from gpu_worker.engine.slots.arena import Arena


def test_holes_are_filled_and_joined() -> None:
    arena = Arena(100)
    places = [arena.allocate(25) for _ in range(4)]
    assert places == [0, 25, 50, 75]
    assert arena.allocate(1) is None
    arena.free(25)
    arena.free(75)
    assert arena.allocate(26) is None, "the holes are not side by side"
    arena.free(50)
    assert arena.allocate(75) == 25
    with pytest.raises(KeyError):
        arena.free(50)


def test_nothing_is_lost_or_given_twice() -> None:
    rng, arena = np.random.default_rng(0), Arena(500)
    taken: list[int] = []
    for _ in range(3_000):
        if taken and rng.integers(2):
            arena.free(taken.pop(int(rng.integers(len(taken)))))
        else:
            place = arena.allocate(int(rng.integers(1, 60)))
            if place is not None:
                taken.append(place)
        arena.check_integrity()
    for place in taken:
        arena.free(place)
    assert arena.allocate(500) == 0


def test_no_room_is_no_place() -> None:
    assert Arena(0).allocate(1) is None
