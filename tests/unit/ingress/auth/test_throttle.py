"""Token buckets by name."""

from __future__ import annotations

import pytest

from ingress.auth.throttle import Throttle


def test_a_burst_then_the_rate() -> None:
    throttle = Throttle()
    taken = [throttle.take("a", per_minute=60, burst=3, now_s=0.0) for _ in range(5)]
    assert taken == [True, True, True, False, False]
    assert not throttle.take("a", 60, 3, 0.9)
    assert throttle.take("a", 60, 3, 1.0)
    assert not throttle.take("a", 60, 3, 1.5)
    # Idle for long: a whole burst again, and no more.
    assert [throttle.take("a", 60, 3, 1000.0) for _ in range(4)] == [True, True, True, False]


def test_names_do_not_share() -> None:
    throttle = Throttle()
    assert throttle.take("a", 1, 1, 0.0)
    assert not throttle.take("a", 1, 1, 0.0)
    assert throttle.take("b", 1, 1, 0.0)


def test_the_wait_is_the_time_until_one_is_left() -> None:
    throttle = Throttle()
    throttle.take("a", per_minute=6, burst=1, now_s=0.0)
    assert throttle.wait_s("a", 6, 1, 0.0) == pytest.approx(10.0)
    assert throttle.wait_s("a", 6, 1, 4.0) == pytest.approx(6.0)
    assert throttle.wait_s("b", 6, 1, 0.0) == 0.0


def test_memory_is_bounded_and_the_name_idle_longest_goes_first() -> None:
    throttle = Throttle(max_names=2)
    for name in ("a", "b", "a", "c"):
        throttle.take(name, 1, 2, 0.0)
    assert throttle.left("a", 1, 2, 0.0) == 0
    assert throttle.left("b", 1, 2, 0.0) == 2
    assert throttle.left("c", 1, 2, 0.0) == 1
