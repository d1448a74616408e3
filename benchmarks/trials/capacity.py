"""The search of the C120 rule: short trials find the best load, then a long trial proves it.

It is independent of the server: a trial is a call that returns whether it passed. Earlier recorded trials
count, so that a search that ran out of time continues.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

# The borders of the search are close enough at this share of the load, or at this many streams.
_RESOLUTION = 0.05
_FEWEST = 32


class OutOfTime(Exception):  # noqa: N818  (it is no error)
    """The next trial does not fit into the remaining time."""


@dataclass(frozen=True, slots=True)
class Budget:
    """A budget of time, which ends at a moment or, for None, never."""

    until: float | None

    @classmethod
    def of(cls, seconds: float | None) -> Budget:
        """Return a budget of this many seconds from now on."""
        return cls(None if seconds is None else time.monotonic() + seconds)

    @property
    def left_s(self) -> float:
        """Return the seconds left, infinite without an end."""
        return float("inf") if self.until is None else self.until - time.monotonic()

    def take(self, seconds: float) -> None:
        """Raise OutOfTime unless this many seconds are left."""
        if self.left_s < seconds:
            raise OutOfTime


@dataclass(frozen=True, slots=True)
class Trial:
    """The record of a trial for a search."""

    streams: int
    seconds: float
    passed: bool


def search(
    run: Callable[[int, float], bool],
    done: Sequence[Trial],
    *,
    least: int,
    start: int = 0,
    trials: int,
    search_s: float,
    final_s: float,
) -> int:
    """Return the largest load that a trial of `final_s` proved, 0 when none did.

    The load rises by a quarter while trials pass; after a failure it falls by as much, then closes in.

    Args:
        run: runs (streams, seconds); may raise OutOfTime, which ends the search.
        done: trials recorded before.
        least: first load without recorded trials; `start` takes precedence over it and over the record.
        trials: most short trials, recorded ones included; with 0 and a `start`, that load is proved at once.
    """
    short = [trial for trial in done if trial.seconds < final_s]
    passed = max((trial.streams for trial in short if trial.passed), default=0)
    failed = min((trial.streams for trial in short if not trial.passed), default=None)
    if start and not trials:
        passed = start
    first = start if start and start not in {trial.streams for trial in short} else 0
    for _ in range(trials - len(short)):
        if failed is not None and failed - passed < max(_FEWEST, passed * _RESOLUTION):
            break
        streams, first = first or _next_load(least, passed, failed), 0
        if streams < 1:
            break
        if run(streams, search_s):
            passed = max(passed, streams)
        else:
            failed = streams if failed is None else min(failed, streams)
    proven = max((trial.streams for trial in done if trial.seconds >= final_s and trial.passed), default=0)
    refuted = [trial.streams for trial in done if trial.seconds >= final_s and not trial.passed]
    streams = min([passed, *(load * 9 // 10 for load in refuted)])
    while streams > proven:
        if run(streams, final_s):
            return streams
        streams = streams * 9 // 10
    return proven


def _next_load(least: int, passed: int, failed: int | None) -> int:
    if failed is None:
        return passed * 5 // 4 if passed else least
    return (passed + failed) // 2 if passed else failed * 3 // 4
