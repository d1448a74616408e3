"""What the sockets of both ports do alike: one accepted socket between its transport and its `Connection`."""

from __future__ import annotations

import asyncio
import socket
from abc import abstractmethod
from collections.abc import Callable
from time import monotonic
from typing import Final, cast

from common.errors import ErrorCode, StreamError
from ingress.connection import UNREAD_TIMEOUT_S, Connection
from ingress.sockets.gate import Gate
from ingress.sockets.linger import LINGER_S, Linger, unsent_bytes
from ingress.sockets.peer import Peer

_WRITE_HIGH_BYTES: Final = 32 * 1024

# A client whose machine is gone. The kernel probes a silent connection after a minute, and gives up one that
# acknowledges nothing for two minutes. The last option is for results on their way, which the kernel would
# otherwise send again for a quarter of an hour. Silence alone means nothing.
_GONE: Final = (
    ("TCP_KEEPIDLE", 60),
    ("TCP_KEEPINTVL", 15),
    ("TCP_KEEPCNT", 4),
    ("TCP_USER_TIMEOUT", 120_000),  # ms
)

OpenConnection = Callable[[Peer], Connection]


class SocketShell(asyncio.Protocol):
    """One accepted socket without its framing (a `Peer`): its subclass cuts what comes into messages.

    Between `pause_reading` and `resume_reading` its connection hears nothing. What has come by then stays as
    raw bytes in the subclass's reader: the rest of one read. That is so on every event loop; uvloop begins to
    read after `connection_made`, whatever was paused there.

    A subclass notes in `_heard_at` when something came, whatever it was: a part of a message and a control
    frame are no silence either.

    gate: lets the socket in, or does not.
    open_connection: makes the connection behind this socket.
    """

    __slots__ = (
        "_closing",
        "_connection",
        "_gate",
        "_heard_at",
        "_linger",
        "_open",
        "_reading",
        "_transport",
    )

    def __init__(self, gate: Gate, open_connection: OpenConnection) -> None:
        self._gate = gate
        self._open = open_connection
        self._transport: asyncio.Transport | None = None
        self._connection: Connection | None = None
        self._closing = False
        self._reading = True
        self._heard_at = monotonic()
        self._linger: Linger | None = None

    # asyncio.Protocol

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Take the socket."""
        # uvloop's transports have the interface of asyncio's, but are no subclass of it.
        self._transport = cast(asyncio.Transport, transport)
        if not self._gate.lets_in(transport):
            self._transport.abort()
            return
        self._transport.set_write_buffer_limits(high=_WRITE_HIGH_BYTES)
        _notice_a_dead_peer(self._transport)
        self._let_in()

    def connection_lost(self, exc: Exception | None) -> None:
        """The socket is closed."""
        self._closing = True
        self._transport = None
        if self._linger is not None:
            self._linger.cancel()
            self._linger = None
        connection, self._connection = self._connection, None
        if connection is not None:
            connection.lost()

    def pause_writing(self) -> None:
        """The transport's buffer is full."""
        if self._connection is not None:
            self._connection.pause_writing()

    def resume_writing(self) -> None:
        """The transport's buffer has drained."""
        if self._connection is not None:
            self._connection.resume_writing()

    # Peer

    @property
    def silent_s(self) -> float:
        """How long nothing has come from the client, in seconds; 0 while it is not read."""
        return monotonic() - self._heard_at if self._reading else 0.0

    @property
    def unsent_bytes(self) -> int:
        """What was sent and the client has not acknowledged."""
        return unsent_bytes(self._transport) if self._transport is not None else 0

    def abort(self) -> None:
        """Close now."""
        if self._transport is not None:
            self._transport.abort()

    def pause_reading(self) -> None:
        """Hand nothing on, and take no more from the socket."""
        if self._transport is not None and not self._closing:
            self._reading = False
            self._transport.pause_reading()

    def resume_reading(self) -> None:
        """Hand on what has come and take from the socket again; the client's silence begins anew."""
        if self._transport is None or self._reading:
            return
        self._reading = True
        self._heard_at = monotonic()
        self._hand_on()
        if self._reading:
            self._transport.resume_reading()

    @property
    def is_gone(self) -> bool:
        """Whether the socket is closed."""
        return self._transport is None and self._closing

    # For subclasses

    @property
    @abstractmethod
    def held_bytes(self) -> int:
        """What has come and was not handed on."""

    @abstractmethod
    def _let_in(self) -> None:
        """The socket may stay."""

    @abstractmethod
    def _hand_on(self) -> None:
        """Hand messages that have come to the connection, as long as it reads."""

    def _hold_back(self) -> None:
        """Data has come though the connection does not read; see that no more does."""
        if self._transport is not None:
            self._transport.pause_reading()

    def _begin(self) -> None:
        """The socket is ready for messages."""
        connection = self._connection = self._open(cast(Peer, self))
        connection.open()

    def _end_sending(self, error: StreamError | None = None) -> None:
        """Close the sending side once it is flushed; the client's end of file, or `Linger`, closes the rest.

        error: why the connection closes.
        """
        self._closing = True
        transport = self._transport
        if transport is None:
            return
        if transport.can_write_eof():
            transport.write_eof()
            self._wait_for_the_client(error)
        else:
            transport.close()

    def _wait_for_the_client(self, error: StreamError | None = None) -> None:
        """Read on until the client closes too, for as long as `Linger` says."""
        if self._transport is None:
            return
        self._reading = True
        self._transport.resume_reading()
        if self._linger is None:
            slow = error is not None and error.code is ErrorCode.SLOW_READER  # and had its time
            self._linger = Linger(self._transport, LINGER_S if slow else UNREAD_TIMEOUT_S)


def _notice_a_dead_peer(transport: asyncio.Transport) -> None:
    """Have the kernel find out whether a client is still there, so that a connection without one ends."""
    connection = transport.get_extra_info("socket")
    if connection is None or connection.family not in (socket.AF_INET, socket.AF_INET6):
        return
    connection.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    for name, value in _GONE:
        option = getattr(socket, name, None)  # not on every system
        if option is not None:
            connection.setsockopt(socket.IPPROTO_TCP, option, value)
