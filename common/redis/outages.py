"""Log lines about Redis outages: one line at the start, one at the end.

All connections of a process report to this module, since dozens of threads and tasks notice the same outage,
several times a second.
"""

from __future__ import annotations

import logging
import threading
import time
from typing import Final

from common.redis.address import RedisAddress

logger = logging.getLogger(__name__)

REPEAT_S: Final = 10.0
"""Seconds between two lines of the log about one outage."""


class Outages:
    """The servers that do not answer this process; for any thread."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        # By address: begin of the outage, and time of its last line; monotonic seconds.
        self._away: dict[str, tuple[float, float]] = {}

    @property
    def any(self) -> bool:
        """Whether a server is known not to answer."""
        return bool(self._away)

    def failed(self, address: RedisAddress, error: BaseException) -> None:
        """Note that a connection could not be opened, or that a command had no answer in time."""
        name, now = str(address), time.monotonic()
        with self._lock:
            since, said = self._away.get(name, (now, now - REPEAT_S))
            due = now - said >= REPEAT_S
            self._away[name] = (since, now if due else said)
        if due:
            away = f" It has not answered for {now - since:.0f} s." if now > since else ""
            logger.warning("%s It is asked again.%s", error, away)

    def answered(self, address: RedisAddress) -> None:
        """Note a reply; not needed while `any` is false."""
        with self._lock:
            away = self._away.pop(str(address), None)
        if away is not None:
            logger.info("Redis at %s answers again after %.1f s", address, time.monotonic() - away[0])

    def log_retry(self, log: logging.Logger, message: str, *arguments: object) -> None:
        """Log a failure that is tried again: at DEBUG while the log reports an outage anyway."""
        log.log(logging.DEBUG if self.any else logging.WARNING, message, *arguments)


OUTAGES: Final = Outages()
"""The outages that this process has noticed."""
