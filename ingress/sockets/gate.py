"""Which of those that connect are let in, before a word is said."""

from __future__ import annotations

import asyncio
import logging
import resource
from collections.abc import Callable
from time import monotonic
from typing import Final

logger = logging.getLogger(__name__)

# Open files that clients leave free, for connections to Redis and what else an ingress opens while it runs.
_SPARE_FILES: Final = 64
_LOG_EVERY_S: Final = 10.0


class Gate:
    """Refuses sockets for which the process has no file to spare, and says so in the log.

    Else uvloop closes what it cannot accept without a word, and a connection to Redis that breaks cannot be
    opened again.

    max_files: returns how many files the process may have open.
    """

    def __init__(self, max_files: Callable[[], int]) -> None:
        self._max_files = max_files
        self._refused = 0
        self._said_at: float | None = None

    def lets_in(self, transport: asyncio.BaseTransport) -> bool:
        """Whether a socket that was just accepted may stay."""
        accepted = transport.get_extra_info("socket")
        max_files = self._max_files()
        # The kernel always takes the lowest number that is free.
        if accepted is None or accepted.fileno() < max_files - min(_SPARE_FILES, max_files // 4):
            return True
        self._refused += 1
        now = monotonic()
        if self._said_at is None or now - self._said_at > _LOG_EVERY_S:
            self._said_at = now
            logger.error(
                "out of file descriptors: %d connections refused; the limit of open files is %d",
                self._refused,
                max_files,
            )
            self._refused = 0
        return False


def max_files() -> int:
    """How many files this process may have open."""
    return resource.getrlimit(resource.RLIMIT_NOFILE)[0]


def allow_many_sockets() -> None:
    """Raise the limit of open files as far as the system lets: every client is one."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft != hard:
        try:
            resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
        except (ValueError, OSError) as error:
            logger.warning("the limit of open files stays at %d: %s", soft, error)
