"""Waits between starts: doubled up to a bound, reset by a steady run."""

from __future__ import annotations

from common.process.backoff import FIRST_BACKOFF_S, MAX_BACKOFF_S, STEADY_AFTER_S, Backoff


def wait_after(backoff: Backoff, run_s: float) -> float:
    backoff.started(1000.0)
    return backoff.ended(1000.0 + run_s)


def test_short_runs_double_the_wait_up_to_its_bound() -> None:
    backoff = Backoff()
    waits = [wait_after(backoff, run_s=STEADY_AFTER_S - 1) for _ in range(9)]
    assert waits == [min(FIRST_BACKOFF_S * 2**n, MAX_BACKOFF_S) for n in range(9)]
    assert waits[-1] == MAX_BACKOFF_S


def test_a_steady_run_resets_the_wait_once() -> None:
    backoff = Backoff()
    waits = [wait_after(backoff, run_s) for run_s in (0.0, 0.0, STEADY_AFTER_S, 0.0)]
    assert waits == [FIRST_BACKOFF_S * factor for factor in (1, 2, 1, 2)]
