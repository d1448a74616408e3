"""Places of an arena: none is lost, none is given twice."""

from __future__ import annotations

import numpy as np
import pytest

from gpu_worker.engine.slots.arena import Arena


def test_holes_are_filled_and_joined() -> None:
    arena = Arena(100)
    places = [arena.take(25) for _ in range(4)]
    assert places == [0, 25, 50, 75]
    assert arena.take(1) is None
    arena.give_back(25)
    arena.give_back(75)
    assert arena.take(26) is None, "the holes are not side by side"
    arena.give_back(50)
    assert arena.take(75) == 25
    with pytest.raises(KeyError):
        arena.give_back(50)


def test_nothing_is_lost_or_given_twice() -> None:
    rng, arena = np.random.default_rng(0), Arena(500)
    taken: list[int] = []
    for _ in range(3_000):
        if taken and rng.integers(2):
            arena.give_back(taken.pop(int(rng.integers(len(taken)))))
        else:
            place = arena.take(int(rng.integers(1, 60)))
            if place is not None:
                taken.append(place)
        arena.check_integrity()
    for place in taken:
        arena.give_back(place)
    assert arena.take(500) == 0


def test_no_room_is_no_place() -> None:
    assert Arena(0).take(1) is None
