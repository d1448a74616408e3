"""Tells a turn that hangs from one in whose midst the whole process was suspended."""

from __future__ import annotations

import math
import time
from collections.abc import Callable


class HangWatch:
    """Watches the turns of another thread, for a thread that looks at them again and again.

    A process that was suspended, with its container or machine, finds an old turn when it goes on. That turn
    has had no time: it is given the whole time-out from then on.

    look_s: time from one look to the next. timeout_s: longest duration of a turn. clock: returns monotonic
    seconds.
    """

    def __init__(self, look_s: float, timeout_s: float, clock: Callable[[], float] = time.monotonic) -> None:
        self._latest_s = 2 * look_s
        self._timeout_s = timeout_s
        self._clock = clock
        self._rests_since = clock()
        self._runs_since = -math.inf

    def rests(self) -> None:
        """Note that the thread sleeps from now on, until its next look."""
        self._rests_since = self._clock()

    def hangs(self, busy_s: float) -> bool:
        """Return whether the present turn, which began `busy_s` ago, has taken too long."""
        now = self._clock()
        if now - self._rests_since > self._latest_s:
            self._runs_since = now
        return min(busy_s, now - self._runs_since) > self._timeout_s
