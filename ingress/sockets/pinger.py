"""Pings to WebSocket clients: they keep silent connections open in proxies, and find clients that left."""

from __future__ import annotations

import asyncio
from typing import Final, Protocol

MAX_UNANSWERED: Final = 2
"""Unanswered pings in a row after which, one interval later, a connection ends."""

# Parts of the interval, over which the pings of many connections are spread, whenever the clients came.
_SLOTS: Final = 20


class Pinged(Protocol):
    """A connection whose client is pinged."""

    def beat(self) -> None:
        """Ping the client, or end the connection: one interval is over."""


class Pinger:
    """Calls `beat` of every connection once an interval, with one timer for all connections.

    interval_s: seconds between two pings of a connection; 0 for no pings.
    num_lost: connections that ended because their clients did not answer.
    """

    __slots__ = ("_interval_s", "_slot_of", "_slots", "_timer", "_turn", "num_lost")

    def __init__(self, interval_s: float) -> None:
        self._interval_s = interval_s
        self._slots: tuple[set[Pinged], ...] = tuple(set() for _ in range(_SLOTS))
        self._slot_of: dict[Pinged, set[Pinged]] = {}
        self._turn = 0
        self.num_lost = 0
        self._timer: asyncio.TimerHandle | None = None

    @property
    def num_joined(self) -> int:
        """Number of connections whose clients are pinged."""
        return len(self._slot_of)

    def join(self, connection: Pinged) -> None:
        """Ping this connection's client from now on, for the first time within an interval."""
        if self._interval_s <= 0:
            return
        slot = min(self._slots, key=len)
        slot.add(connection)
        self._slot_of[connection] = slot
        if self._timer is None:
            self._wait()

    def leave(self, connection: Pinged) -> None:
        """Stop pinging a connection; harmless for one that has not joined."""
        slot = self._slot_of.pop(connection, None)
        if slot is not None:
            slot.discard(connection)

    def _wait(self) -> None:
        self._timer = asyncio.get_running_loop().call_later(self._interval_s / _SLOTS, self._tick)

    def _tick(self) -> None:
        self._timer = None
        if not self._slot_of:
            return  # the next connection to join starts the timer again
        self._turn = (self._turn + 1) % _SLOTS
        for connection in list(self._slots[self._turn]):
            connection.beat()
        self._wait()
