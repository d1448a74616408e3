"""The end of a socket that the server closes: it waits for the client to read all, for a bounded time."""

from __future__ import annotations

import asyncio
import fcntl
import socket
import sys
import termios
from struct import Struct
from time import monotonic
from typing import Final

# How long a client may take to close too, once all is sent. If the server closed with unread input, the
# kernel would send a reset, which can destroy the last message on its way to the client.
LINGER_S: Final = 2.0
# A client may send on before it reads, such as the body of a request that is refused: for this long at most.
_MOST_INPUT_S: Final = 30.0

# tcpi_bytes_acked of struct tcp_info (linux/tcp.h), since Linux 4.1.
_BYTES_ACKED: Final = Struct("=120xQ")


class Linger:
    """Aborts a transport whose sending side is closed, if its client has read all and does not close too.

    The client's time begins when nothing is left to send, here or in the kernel, so a slow reader receives
    the whole of a long last result.

    stuck_s: how long a client may leave all of the rest unread.
    """

    __slots__ = (
        "_acked",
        "_flushed",
        "_has_input",
        "_input_until",
        "_progress_at",
        "_stuck_s",
        "_timer",
        "_transport",
    )

    def __init__(self, transport: asyncio.Transport, stuck_s: float) -> None:
        self._transport = transport
        self._stuck_s = stuck_s
        self._flushed = is_flushed(transport)
        self._acked = acked_bytes(transport)
        self._progress_at = monotonic()
        self._has_input = False
        self._input_until = self._progress_at + _MOST_INPUT_S
        self._timer = asyncio.get_running_loop().call_later(LINGER_S, self._look)

    def cancel(self) -> None:
        """Stop: the socket is closed."""
        self._timer.cancel()

    def note_input(self) -> None:
        """Note that the client still sends: it may not have begun to read."""
        self._has_input = True

    def _look(self) -> None:
        was_flushed, self._flushed = self._flushed, is_flushed(self._transport)
        before, self._acked = self._acked, acked_bytes(self._transport)
        now = monotonic()
        if self._acked > before:
            self._progress_at = now
        sends, self._has_input = self._has_input and now < self._input_until, False
        if (was_flushed and self._flushed and not sends) or now - self._progress_at > self._stuck_s:
            self._transport.abort()
        else:
            self._timer = asyncio.get_running_loop().call_later(LINGER_S, self._look)


def is_flushed(transport: asyncio.Transport) -> bool:
    """Return whether the client has acknowledged all sent bytes."""
    if transport.get_write_buffer_size():
        return False
    connection = transport.get_extra_info("socket")
    if connection is None:
        return True
    try:
        queued = fcntl.ioctl(connection.fileno(), termios.TIOCOUTQ, bytes(4))
    except OSError:  # closed, or no such queue on this system
        return True
    return not int.from_bytes(queued, sys.byteorder)


def acked_bytes(transport: asyncio.Transport) -> int:
    """Return the bytes that the client has acknowledged so far; 0 where the system cannot say.

    The fill of the buffers is no measure: TLS has another buffer, whose fill cannot be read.
    """
    connection = transport.get_extra_info("socket")
    if connection is None:
        return 0
    try:
        told = connection.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, _BYTES_ACKED.size)
    except OSError:
        return 0
    return int(_BYTES_ACKED.unpack(told)[0]) if len(told) == _BYTES_ACKED.size else 0
