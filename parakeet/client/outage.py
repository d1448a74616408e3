"""How long, and at which times, a client tries to go on with a stream whose connection was lost."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Callable
from typing import Final

_FIRST_PAUSE_S: Final = 0.1
_LONGEST_PAUSE_S: Final = 2.0


class Outage:
    """The time without a connection since a stream last came anywhere, and the attempts in it.

    Pauses grow, and differ from client to client, since all clients of a server lose it at once.

    resume_s: longest time without a connection since the stream last came anywhere.
    now: monotonic seconds.
    """

    def __init__(self, resume_s: float, now: Callable[[], float]) -> None:
        self._resume_s = resume_s
        self._now = now
        self._came_to: object = None
        self._since = 0.0
        self._resumed_at = 0.0
        self._num_attempts = 0
        self._not_before: dict[str, float] = {}

    def lost(self, came_to: object) -> None:
        """Note a lost connection. came_to: what the stream has; the same as last time is no progress.

        A stream that came nowhere on that connection has only what is left of the time.
        """
        now = self._now()
        if came_to == self._came_to and now - self._resumed_at <= self._resume_s:
            self._since += now - self._resumed_at  # a client that had nothing to send did not wait
            return
        self._came_to, self._since, self._num_attempts = came_to, now, 0
        self._not_before.clear()

    def resumed(self) -> None:
        """Note that the stream goes on."""
        self._resumed_at = self._now()

    def refused(self, url: str, retry_after_s: float | None) -> None:
        """Note that a server asked not to be asked again for so long."""
        if retry_after_s is not None:
            self._not_before[url] = self._now() + retry_after_s

    def may_ask(self, url: str) -> bool:
        """Whether a server may be asked now."""
        return self._now() >= self._not_before.get(url, 0.0)

    async def pause(self) -> bool:
        """Wait for the next attempt; return False where the time is over."""
        left_s = self._since + self._resume_s - self._now()
        if left_s <= 0:
            return False
        pause_s = min(_LONGEST_PAUSE_S, _FIRST_PAUSE_S * 2**self._num_attempts) * random.uniform(0.5, 1.5)
        self._num_attempts = min(self._num_attempts + 1, 10)
        await asyncio.sleep(min(pause_s, left_s))
        return True
