"""What a busy host paces is further apart, within bounds; a host at ease waits for little or nothing."""

from __future__ import annotations

import pytest

from common.process.pace import Pace
from tests.device.paced_host import LONGEST_S, Host


def settle(host: Host, pace: Pace, step_s: float, row_s: float, rows_a_second: float) -> tuple[float, float]:
    """Steps over all rows that have come; the last second's mean rows a step, and share of the processor."""
    came, rows, steps, used_at = 0.0, 0.0, 0, 0.0
    for until in (4.0, 5.0):
        rows, steps, used_at = 0.0, 0, host.used_s
        while host.now_s < until:
            wait_s = pace.wait_s()
            if wait_s:
                host.now_s += wait_s
            waiting = rows_a_second * host.now_s - came
            if waiting < 1:
                host.now_s += 1 / rows_a_second
                continue
            pace.begun()
            came, rows, steps = came + waiting, rows + waiting, steps + 1
            host.work(step_s + row_s * waiting)
    return rows / steps, host.used_s - used_at


def test_a_host_at_ease_begins_each_step_at_once() -> None:
    host = Host()
    pace = host.pace()
    settle(host, pace, 0.001, 8e-6, 300.0)
    assert pace.interval_s == 0
    assert pace.wait_s() == 0


def test_a_busy_host_makes_larger_steps_and_has_time_to_spare() -> None:
    """62,500 chunks a second, 8 us each, and 1.5 ms for a step: alone they would be 1 : 1."""
    unpaced, paced = Host(), Host()
    rows, share = settle(unpaced, unpaced.pace(0.0), 0.0015, 8e-6, 62_500.0)
    assert share > 0.99
    paced_rows, paced_share = settle(paced, paced.pace(), 0.0015, 8e-6, 62_500.0)
    assert paced_rows > 2 * rows
    assert paced_share < 0.85


def test_the_distance_has_a_bound() -> None:
    host = Host()
    pace = host.pace()
    for _ in range(100):
        pace.begun()
        host.work(0.05)
    assert pace.interval_s == LONGEST_S
    pace.begun()
    assert pace.wait_s() == pytest.approx(LONGEST_S)
    host.now_s += LONGEST_S
    assert pace.wait_s() == 0


def test_the_distance_of_a_host_at_ease_may_be_more_than_nothing() -> None:
    host = Host()
    pace = Pace(LONGEST_S, lambda: host.now_s, lambda: host.used_s, shortest_s=0.005)
    assert pace.interval_s == 0.005
    for _ in range(100):
        pace.begun()
        host.now_s += 0.05
    assert pace.interval_s == 0.005
    for _ in range(100):
        pace.begun()
        host.work(0.05)
    assert pace.interval_s == LONGEST_S
