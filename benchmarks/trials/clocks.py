"""The clocks of a trial: the machine's clock, or the processor time and sleep of its thread."""

from __future__ import annotations

import time
from typing import Protocol


class Clock(Protocol):
    """A clock in seconds from some moment on."""

    def now(self) -> float: ...

    def sleep(self, seconds: float) -> None: ...


class RealClock:
    """The machine's monotonic clock."""

    def now(self) -> float:
        return time.perf_counter()

    def sleep(self, seconds: float) -> None:
        time.sleep(seconds)


class ThreadClock:
    """The processor time and sleep of this thread, so that other work of the machine does not count.

    It does not really sleep: a trial with much idle time takes less than its seconds.
    """

    def __init__(self) -> None:
        self._slept_s = 0.0

    def now(self) -> float:
        return time.thread_time() + self._slept_s

    def sleep(self, seconds: float) -> None:
        self._slept_s += max(0.0, seconds)
