"""What a trial takes for the time: the machine's clock, or what the thread has done and slept."""

from __future__ import annotations

import time
from typing import Protocol


class Clock(Protocol):
    """Seconds from some moment on."""

    def now(self) -> float: ...

    def sleep(self, seconds: float) -> None: ...


class RealClock:
    """The machine's."""

    def now(self) -> float:
        return time.perf_counter()

    def sleep(self, seconds: float) -> None:
        time.sleep(seconds)


class ThreadClock:
    """Goes on while this thread runs and by what it sleeps, so that others on the machine do not count.

    It never really sleeps: a trial with much idle time is over sooner than its seconds.
    """

    def __init__(self) -> None:
        self._slept_s = 0.0

    def now(self) -> float:
        return time.thread_time() + self._slept_s

    def sleep(self, seconds: float) -> None:
        self._slept_s += max(0.0, seconds)
