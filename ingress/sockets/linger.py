"""How a socket that is hung up on ends: all that was sent is read, or its client is not waited for."""

from __future__ import annotations

import asyncio
import fcntl
import sys
import termios
from time import monotonic
from typing import Final

# How long a client that has been sent everything may take to close too. Closing with unread input makes the
# kernel send a reset, which can destroy the last message on its way to the client.
LINGER_S: Final = 2.0


class Linger:
    """Aborts a transport whose sending side is closed, once its client has read all and not closed too.

    Time runs for the client from the moment at which nothing is left to send, here or in the kernel: a slow
    reader gets the whole of a long last result.

    stuck_s: how long a client may read nothing of what is left.
    """

    __slots__ = ("_progress_at", "_stuck_s", "_timer", "_transport", "_unsent")

    def __init__(self, transport: asyncio.Transport, stuck_s: float) -> None:
        self._transport = transport
        self._stuck_s = stuck_s
        self._unsent = unsent_bytes(transport)
        self._progress_at = monotonic()
        self._timer = asyncio.get_running_loop().call_later(LINGER_S, self._look)

    def cancel(self) -> None:
        """The socket is closed."""
        self._timer.cancel()

    def _look(self) -> None:
        before, self._unsent = self._unsent, unsent_bytes(self._transport)
        now = monotonic()
        if self._unsent < before:
            self._progress_at = now
        elif self._unsent == 0 or now - self._progress_at > self._stuck_s:
            self._transport.abort()
            return
        self._timer = asyncio.get_running_loop().call_later(LINGER_S, self._look)


def unsent_bytes(transport: asyncio.Transport) -> int:
    """Bytes that the client has not acknowledged: those of the transport's buffer, and of the kernel's."""
    count = transport.get_write_buffer_size()
    connection = transport.get_extra_info("socket")
    if connection is not None:
        try:
            queued = fcntl.ioctl(connection.fileno(), termios.TIOCOUTQ, bytes(4))
        except OSError:  # closed, or no such queue on this system
            return count
        count += int.from_bytes(queued, sys.byteorder)
    return count
