"""A step on CPU is measured with the bundled model, from audio to results."""

from __future__ import annotations

import pytest

from benchmarks.cpu_step import measure


@pytest.mark.parametrize("turn_detection", [False, True])
def test_the_least_and_the_middle_of_some_steps_are_told(turn_detection: bool) -> None:
    found = measure(2, 3, turn_detection=turn_detection)
    assert 0 < found["least_ms"] <= found["median_ms"]
    assert found["cpu_median_ms"] > 0
