"""The C120 rule's search: short trials until the best load is found, then a long one that proves it.

It knows nothing of what carries the load: a trial is a call that says whether it passed.  Trials that were
recorded before count, so that a search that ran out of time goes on where it was.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

# The borders of the search are close enough at this share of the load, or at this many streams.
_RESOLUTION = 0.05
_FEWEST = 32


class OutOfTime(Exception):  # noqa: N818  (it is no error)
    """The next trial does not fit into what is left of the time."""


@dataclass(frozen=True, slots=True)
class Budget:
    """Seconds until a moment; None for no end."""

    until: float | None

    @classmethod
    def of(cls, seconds: float | None) -> Budget:
        """So many seconds from now on."""
        return cls(None if seconds is None else time.monotonic() + seconds)

    @property
    def left_s(self) -> float:
        """Seconds left, infinite without an end."""
        return float("inf") if self.until is None else self.until - time.monotonic()

    def take(self, seconds: float) -> None:
        """Raise OutOfTime unless so many are left."""
        if self.left_s < seconds:
            raise OutOfTime


@dataclass(frozen=True, slots=True)
class Trial:
    """What a search remembers of a trial."""

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
        least: load to begin at when nothing is known; `start` goes before it, and before what is known.
        trials: most short trials, recorded ones included; with 0 and a `start`, that is to be proved at once.
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
