"""A host whose clock and processor a test sets, for whatever is paced."""

from __future__ import annotations

from typing import Final

from common.process.pace import Pace

LONGEST_S: Final = 0.02


class Host:
    """A clock, and a processor that works when it is told to."""

    def __init__(self) -> None:
        self.now_s = self.used_s = 0.0

    def pace(self, longest_s: float = LONGEST_S) -> Pace:
        return Pace(longest_s, lambda: self.now_s, lambda: self.used_s)

    def busy_pace(self) -> Pace:
        """Return the pace of a host that has been busy for a while."""
        pace = self.pace()
        while pace.interval_s < LONGEST_S:
            pace.begun()
            self.work(0.05)
        return pace

    def work(self, seconds: float) -> None:
        self.now_s += seconds
        self.used_s += seconds
