"""The pace of steps, reads or commits: a busy process takes fewer and larger ones.

A step costs the host some milliseconds whatever its rows. With few streams, steps that begin as soon as a
chunk is there return results soonest. With many streams such steps are small, and their number takes the time
that the rows need. So the time between two steps grows with the share of a processor that the process uses:
steps get larger, a row gets cheaper, and the share falls until both balance.

A worker's reads (gpu_worker/pipeline/intake.py) and an ingress's commits (common/streams/audio_log.py) are
paced in the same way, for the same reason: a round costs its process, Redis and the next process many system
calls, whether it has one stream or fifty.

The use of the whole process counts and not that of the thread: its threads share one interpreter, and the
engine's thread waits for the others.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Final

# Shares of one processor at which the time between steps begins to grow, and is longest.
_AT_EASE: Final = 0.55
_BUSY: Final = 0.75
_WINDOW_S: Final = 0.1
# Weight of a new window in the average.
_NEW: Final = 0.3


class Pace:
    """Says when the next step may begin.

    Args:
        longest_s: time between the beginnings of two steps in a busy process; 0 turns pacing off.
        shortest_s: the same in an idle process.
        clock: returns monotonic seconds.
        used: returns the processor seconds that the process has used.
    """

    def __init__(
        self,
        longest_s: float,
        clock: Callable[[], float] = time.monotonic,
        used: Callable[[], float] = time.process_time,
        *,
        shortest_s: float = 0.0,
    ) -> None:
        self._longest_s, self._shortest_s = longest_s, shortest_s
        self._clock, self._used = clock, used
        self._window_began, self._used_before = clock(), used()
        self._share = 0.0
        self.interval_s = shortest_s
        self._next_at = 0.0

    def begun(self) -> None:
        """Note that a step begins now."""
        if not self._longest_s:
            return
        now = self._clock()
        passed = now - self._window_began
        if passed >= _WINDOW_S:
            used = self._used()
            self._share += _NEW * ((used - self._used_before) / passed - self._share)
            self._window_began, self._used_before = now, used
            busy = min(1.0, max(0.0, (self._share - _AT_EASE) / (_BUSY - _AT_EASE)))
            self.interval_s = self._shortest_s + (self._longest_s - self._shortest_s) * busy
        self._next_at = now + self.interval_s

    def wait_s(self) -> float:
        """Return the seconds until a step may begin; 0 for now."""
        if not self.interval_s:
            return 0.0
        return max(0.0, self._next_at - self._clock())
