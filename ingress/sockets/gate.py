"""Bounds on open sockets, in all and per address, checked before anything is read."""

from __future__ import annotations

import asyncio
import logging
import resource
from collections import Counter, deque
from collections.abc import Callable
from enum import Enum
from time import monotonic
from typing import Final

from ingress.auth.proxies import TrustedProxies, counted_as, plain_address
from ingress.sockets.turns import Turns

logger = logging.getLogger(__name__)

# Open files that clients leave free, for connections to Redis and other files that an ingress opens.
_SPARE_FILES: Final = 64
_LOG_EVERY_S: Final = 10.0


class Full(Enum):
    """The reason for refusing a socket. The value is the text for the log."""

    NO_FILES = "out of file descriptors"
    CONNECTIONS = "--max-connections is reached"
    ADDRESS = "--max-connections-per-address is reached by a client"


_REASONS: Final = {Full.NO_FILES: "files", Full.CONNECTIONS: "connections", Full.ADDRESS: "address"}

SENTENCES: Final = {
    Full.CONNECTIONS: "This server has as many connections as it takes; try again later.",
    Full.ADDRESS: "Your address has as many connections as it may have.",
}
"""The sentence for a client that is refused."""


class Place:
    """The place of one accepted socket, returned by `leave`."""

    __slots__ = ("_gate", "_of", "_serving", "address")

    def __init__(self, gate: Gate, address: str, of: str | None) -> None:
        self._gate = gate
        self._of = of  # the address under which it counts; None for a proxy's socket
        self._serving: deque[str | None] = deque()  # the same for each request without an answer
        self.address: Final = address

    def belongs_to(self, address: str) -> Full | None:
        """Count the socket for the client behind a trusted proxy, whose address the request names.

        Returns the reason for refusing the socket, or None.
        """
        if address == self.address or self._of is not None:
            return None
        full, self._of = self._gate.count(address)
        return full

    @property
    def turns(self) -> Turns:
        """The turns in which its data are read when it sends much at once."""
        return self._gate.turns

    def serve(self, address: str) -> Full | None:
        """Count one request for the client behind a trusted proxy, until `served`.

        The next request of the same socket may come from another client. Returns the reason for refusing the
        request, or None.
        """
        full, of = None, None
        if address != self.address and self._of is None:
            full, of = self._gate.count(address)
        self._serving.append(of)
        return full

    def served(self) -> None:
        """Note that the oldest counted request is answered."""
        if self._serving:
            self._gate.uncount(self._serving.popleft())

    def leave(self) -> None:
        """Note that the socket is closed. Further calls do nothing."""
        while self._serving:
            self.served()
        self._gate.left(self._of)


class Gate:
    """Counts sockets, and refuses those over a bound.

    Without a bound below that of open files, uvloop silently closes sockets that it cannot accept, and a
    broken connection to Redis cannot be opened again.

    max_files: returns how many files the process may have open.
    max_connections: most sockets at once; None leaves the bound to `max_files`.
    max_per_address: most sockets of a client's address, an IPv6 address with all of its /64; 0 for no bound.
    proxies: proxies whose sockets count for the clients that they name.
    turns: the turns for all work but that of live streams.
    """

    def __init__(
        self,
        max_files: Callable[[], int],
        max_connections: int | None = None,
        max_per_address: int = 0,
        proxies: TrustedProxies | None = None,
        turns: Turns | None = None,
    ) -> None:
        self.turns: Final = turns or Turns()
        self._max_files = max_files
        self._max_connections = max_connections
        self._max_per_address = max_per_address
        self._proxies = proxies or TrustedProxies(())
        self._num_open = 0
        self._per_address: Counter[str] = Counter()
        self._refused: Counter[Full] = Counter()  # refusals since the last line in the log
        self._all_refused: Counter[Full] = Counter()
        self._said_at: dict[Full, float] = {}

    @property
    def num_open(self) -> int:
        """Number of sockets with a place."""
        return self._num_open

    @property
    def num_refused(self) -> dict[str, int]:
        """Number of refused sockets and requests so far, by reason."""
        return {name: self._all_refused[full] for full, name in _REASONS.items()}

    def enter(self, transport: asyncio.BaseTransport) -> Place | Full:
        """Take a socket that was just accepted; return its `Place`, or the reason for refusing it."""
        if not self.has_file_for(transport):
            return Full.NO_FILES
        if self._max_connections is not None and self._num_open >= self._max_connections:
            return self._said(Full.CONNECTIONS)
        peer = transport.get_extra_info("peername")
        address = plain_address(peer[0]) if isinstance(peer, tuple) else ""
        of: str | None = None
        if not self._proxies.includes(address):
            full, of = self.count(address)
            if full is not None:
                return full
        self._num_open += 1
        return Place(self, address, of)

    def has_file_for(self, transport: asyncio.BaseTransport) -> bool:
        """Return whether enough files are left after this socket was accepted."""
        accepted = transport.get_extra_info("socket")
        return accepted is None or self.has_file(accepted.fileno())

    def has_file(self, number: int) -> bool:
        """Return whether enough files are left after a file with this number was opened."""
        max_files = self._max_files()
        # The kernel always takes the lowest free number.
        if number < max_files - min(_SPARE_FILES, max_files // 4):
            return True
        self._said(Full.NO_FILES, f"; the limit of open files is {max_files}")
        return False

    def count(self, address: str) -> tuple[Full | None, str | None]:
        """Count one more socket of an address; return the reason to refuse it, and the name for `uncount`."""
        if not self._max_per_address:
            return None, None
        of = counted_as(address)
        if self._per_address[of] >= self._max_per_address:
            return self._said(Full.ADDRESS), None
        self._per_address[of] += 1
        return None, of

    def left(self, of: str | None) -> None:
        """Note that a place is free again."""
        self._num_open -= 1
        self.uncount(of)

    def uncount(self, of: str | None) -> None:
        """Count one socket less under a name that `count` returned."""
        if of is not None:
            self._per_address[of] -= 1
            if not self._per_address[of]:
                del self._per_address[of]

    def _said(self, full: Full, more: str = "") -> Full:
        self._refused[full] += 1
        self._all_refused[full] += 1
        now = monotonic()
        if now - self._said_at.get(full, -_LOG_EVERY_S) >= _LOG_EVERY_S:
            self._said_at[full] = now
            level = logging.ERROR if full is Full.NO_FILES else logging.WARNING
            logger.log(level, "%s: %d connections refused%s", full.value, self._refused.pop(full), more)
        return full


def max_files() -> int:
    """Return how many files this process may have open."""
    return resource.getrlimit(resource.RLIMIT_NOFILE)[0]


def allow_many_sockets() -> None:
    """Raise the limit of open files as far as the system permits: every client is one file."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft != hard:
        try:
            resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
        except (ValueError, OSError) as error:
            logger.warning("the limit of open files stays at %d: %s", soft, error)
