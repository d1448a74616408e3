"""The wait before a process that has ended is started again."""

from __future__ import annotations

FIRST_BACKOFF_S = 0.5
MAX_BACKOFF_S = 30.0
STEADY_AFTER_S = 60.0
"""A run of this length resets the wait."""


class Backoff:
    """The waits between the starts of one thing: doubled up to a bound, reset by a steady run.

    Times are seconds of a monotonic clock. A start that fails counts as a run that ended at once.
    """

    def __init__(self) -> None:
        self._wait_s = FIRST_BACKOFF_S
        self._started_at = 0.0

    def started(self, now: float) -> None:
        """Note a start, or the attempt of one."""
        self._started_at = now

    def ended(self, now: float) -> float:
        """Return the seconds to wait before the next start."""
        if now - self._started_at >= STEADY_AFTER_S:
            self._wait_s = FIRST_BACKOFF_S
        wait_s = self._wait_s
        self._wait_s = min(2 * wait_s, MAX_BACKOFF_S)
        return wait_s
