"""What a worker measures at its start."""

from __future__ import annotations

from unittest.mock import Mock

import pytest

from common.settings import parse
from gpu_worker.backend import make_backend
from gpu_worker.capacity import BUSY_SHARE, Capacity, _estimate, measure_capacity
from gpu_worker.steps.null import NullEngine

LIMIT_S = BUSY_SHARE * 0.16


@pytest.mark.parametrize(
    ("points", "expected"),
    [
        # 8 ms and 1 ms a stream: 120 in 128 ms.
        ([(1, 0.009), (4, 0.012), (16, 0.024), (64, 0.072)], 120),
        # Beyond the limit the line goes back.
        ([(4, 0.020), (16, 0.140)], 14),
        ([(1, 0.200)], 0),
        ([(1, 0.064)], 2),
    ],
)
def test_the_last_slope_goes_on(points: list[tuple[int, float]], expected: int) -> None:
    assert _estimate(points, LIMIT_S) == Capacity(expected, *points[-1], is_least=False)


@pytest.mark.parametrize("points", [[(1, 0.001)], [(16, 0.020), (64, 0.020)], [(16, 0.021), (64, 0.020)]])
def test_no_estimate_goes_far_beyond_what_was_measured(points: list[tuple[int, float]]) -> None:
    rows, step_s = points[-1]
    assert _estimate(points, LIMIT_S) == Capacity(8 * rows, rows, step_s, is_least=True)
    assert str(_estimate(points, LIMIT_S)).startswith(
        f"at least {8 * rows} streams in real time ({rows} at once"
    )


def test_a_lane_says_that_its_capacity_is_a_part() -> None:
    part = Capacity(130, 64, 0.072, is_least=False).shared_by(4)
    assert part.num_streams == 32
    assert str(part) == "32 streams in real time (a lane's part of what its group measured)"
    assert str(Capacity(8, 1, 0.001, is_least=True).shared_by(2)).startswith(
        "at least 4 streams in real time ("
    )


def test_slow_steps_are_noticed_and_bounded_in_time() -> None:
    """Each step takes more than half of a chunk: every round takes one, and one a batch."""
    engine = NullEngine(64, 160, 100.0)
    steps = Mock(wraps=engine.step)
    vars(engine)["step"] = steps
    capacity = measure_capacity(engine, 0.3)
    # Ageing has 0.09 s and may begin a step before its end, and a round of one stream has four.
    assert steps.call_count < 30
    assert capacity is not None
    assert capacity.step_s >= 0.1


def test_a_worker_measures_or_does_not() -> None:
    measured = make_backend(parse("worker", ["--backend", "null", "--measure-capacity-s", "0.2"])).capacity
    assert measured is not None
    assert measured.num_streams > 0
    assert make_backend(parse("worker", ["--backend", "null", "--measure-capacity-s", "0"])).capacity is None
