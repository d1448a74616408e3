"""The common part of the sockets of both ports: one socket between its transport and its `Connection`."""

from __future__ import annotations

import asyncio
from abc import abstractmethod
from collections.abc import Callable
from time import monotonic
from typing import Final, cast

from common.errors import ErrorCode, StreamError
from ingress.clients.connection import Connection
from ingress.clients.limits import UNREAD_TIMEOUT_S
from ingress.request import Request
from ingress.sockets.gate import Place
from ingress.sockets.linger import LINGER_S, Linger, acked_bytes
from ingress.sockets.peer import Peer
from ingress.sockets.turns import READ_S_PER_BYTE

_WRITE_HIGH_BYTES: Final = 32 * 1024
MESSAGES_A_TURN: Final = 64
"""Messages of one client before it has to wait for a turn: a read of 256 KB may hold 20,000."""
BYTES_A_TURN: Final = 16 * 1024
"""A read of this size waits for a turn too, and so does the next read: libuv reads 32 times in a row before
it serves other sockets."""

OpenConnection = Callable[[Peer], Connection]
"""Makes the connection behind a socket."""

StreamRoute = Callable[[Request], OpenConnection]
"""Checks a request for a stream, and returns what opens its connection. Raises Refused (ingress/http) where
the request is wrong: the client has no answer yet at that time."""


class SocketShell(asyncio.Protocol):
    """One accepted socket without its framing (a `Peer`): a subclass cuts the received bytes into messages.

    Between `pause_reading` and `resume_reading` its connection receives nothing. Bytes that have come stay
    raw in the subclass's reader: they are the rest of one read. This holds on every event loop, although
    uvloop begins to read after `connection_made` even if reading was paused there.

    A client that sends many small messages at once is served in turns, as other clients are: see
    `_may_go_on`.

    A subclass notes in `_heard_at` when any data came: a part of a message or a ping ends silence too. A pong
    does not: it shows that the client's machine is there, not that the client is.
    """

    __slots__ = (
        "_closing",
        "_connection",
        "_heard_at",
        "_linger",
        "_num_heard",
        "_place",
        "_reading",
        "_resting",
        "_transport",
    )

    def __init__(self) -> None:
        self._place: Place | None = None
        self._transport: asyncio.Transport | None = None
        self._connection: Connection | None = None
        self._closing = False
        self._reading = True
        self._num_heard = 0  # messages in this turn
        self._resting = False  # whether it waits for its next turn
        self._heard_at = monotonic()
        self._linger: Linger | None = None

    # asyncio.Protocol

    def connection_lost(self, exc: Exception | None) -> None:
        """Note that the socket is closed."""
        self._closing = True
        self._transport = None
        if self._place is not None:
            self._place.leave()
            self._place = None
        if self._linger is not None:
            self._linger.cancel()
            self._linger = None
        connection, self._connection = self._connection, None
        if connection is not None:
            connection.lost()

    def pause_writing(self) -> None:
        """Note that the transport's buffer is full."""
        if self._connection is not None:
            self._connection.pause_writing()

    def resume_writing(self) -> None:
        """Note that the transport's buffer has drained."""
        if self._connection is not None:
            self._connection.resume_writing()

    # Peer

    @property
    def silent_s(self) -> float:
        """Return how long nothing has come from the client, in seconds; 0 while it is not read."""
        return monotonic() - self._heard_at if self._reading else 0.0

    @property
    def acked_bytes(self) -> int:
        """Return how many sent bytes the client has acknowledged; the number grows as it reads."""
        return acked_bytes(self._transport) if self._transport is not None else 0

    def began(self) -> None:
        """Refund the turn time that was charged for the connection: a stream lives on it."""
        if self._transport is not None and self._place is not None:
            tls = self._transport.get_extra_info("ssl_object") is not None
            self._place.turns.began(tls=tls)

    def abort(self) -> None:
        """Close now."""
        if self._transport is not None:
            self._transport.abort()

    def pause_reading(self) -> None:
        """Deliver no messages, and stop reading from the socket."""
        if self._transport is not None and not self._closing:
            self._reading = False
            self._transport.pause_reading()

    def resume_reading(self) -> None:
        """Deliver the waiting messages, and read from the socket again; the client's silence begins anew."""
        if self._transport is None or self._reading:
            return
        self._reading = True
        self._heard_at = monotonic()
        if not self._resting:
            self._take_turn(self._hand_on)

    # For subclasses

    @abstractmethod
    def _hand_on(self) -> None:
        """Deliver received messages to the connection, as long as it reads."""

    def _may_go_on(self) -> bool:
        """Return whether another message may be delivered in this turn; else the rest waits for the next.

        Nothing is read from the socket until then, so the waiting bytes are the rest of one read.
        """
        if self._num_heard < MESSAGES_A_TURN:
            self._num_heard += 1
            return True
        self._end_turn()
        return False

    def _end_turn(self) -> None:
        """Deliver nothing more from the client until its turn comes (see `Turns`)."""
        transport, place = self._transport, self._place
        if transport is None or place is None or self._resting or transport.is_closing():
            return
        self._resting = True
        transport.pause_reading()
        place.turns.ask(self._next_turn)

    def _have_read(self, num_bytes: int) -> None:
        """Put the next read into another turn if this one was long."""
        if num_bytes >= BYTES_A_TURN and self._place is not None:
            self._place.turns.charge(num_bytes * READ_S_PER_BYTE)
            if self._reading:
                self._end_turn()

    def _hear(self, data: bytes) -> None:
        """Deliver the messages of a read, whose bytes the reader holds by now."""
        self._num_heard = 0
        if len(data) < BYTES_A_TURN or self._place is None:
            self._hand_on()
            return
        self._place.turns.at_once(self._hand_on_for_audio)  # else with the next turn
        self._have_read(len(data))

    def _next_turn(self) -> None:
        self._resting = False
        if self._transport is not None and self._reading:
            self._take_turn(self._hand_on_for_audio)

    def _hand_on_for_audio(self) -> None:
        """Deliver messages in a turn; audio that comes of them pays for the turn."""
        connection, place = self._connection, self._place
        before_s = 0.0 if connection is None else connection.reading.heard_s
        self._hand_on()
        if connection is not None and place is not None:
            place.turns.earn(connection.reading.heard_s - before_s)

    def _take_turn(self, hand_on: Callable[[], None]) -> None:
        self._num_heard = 0
        hand_on()
        if self._reading and not self._resting and self._transport is not None:
            self._transport.resume_reading()

    def _hold_back(self) -> None:
        """Keep data that has come though none is taken just now; see that no more does."""
        if self._transport is not None:
            # asyncio of Python 3.11.2 reads on behind a pause in `connection_made`, and takes another pause
            # for the one that it has; so that one is ended first.
            self._transport.resume_reading()
            self._transport.pause_reading()

    def _begin(self, transport: asyncio.Transport, place: Place, open_connection: OpenConnection) -> None:
        """Set up a socket that is ready for messages."""
        self._transport = transport
        self._place = place
        transport.set_write_buffer_limits(high=_WRITE_HIGH_BYTES)
        connection = self._connection = open_connection(cast(Peer, self))
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
        else:
            transport.close()  # TLS has no half-closed connections; this flushes first
        self._wait_for_the_client(error)

    def _wait_for_the_client(self, error: StreamError | None = None) -> None:
        """Read on until the client closes too, for as long as `Linger` says."""
        if self._transport is None:
            return
        self._reading = True
        self._transport.resume_reading()
        if self._linger is None:
            slow = error is not None and error.code is ErrorCode.SLOW_READER  # its time is used up
            self._linger = Linger(self._transport, LINGER_S if slow else UNREAD_TIMEOUT_S)
