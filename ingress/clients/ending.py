"""How a connection ends for its client: the error that it is told, what still waits for it, and the close."""

from __future__ import annotations

import logging
from collections.abc import Callable

from common.entries import StreamId
from common.errors import ErrorCode, StreamError
from common.messages import ErrorMessage
from ingress.auth.guard import OverLimit
from ingress.clients.outgoing import Outgoing
from ingress.clients.streams import ClientStreams
from ingress.dialects.dialect import Dialect
from ingress.meter import Meter
from ingress.sockets.peer import Peer

logger = logging.getLogger(__name__)


class Ending:
    """The errors and the end of one connection.

    streams: know whose the connection is.
    outgoing: what waits there goes first.
    on_hung_up: called once, when the connection is closed from here.
    hung_up: whether the close is under way.
    """

    __slots__ = (
        "_asked",
        "_dialect",
        "_error",
        "_logged",
        "_meter",
        "_on_hung_up",
        "_outgoing",
        "_peer",
        "_streams",
        "hung_up",
    )

    def __init__(
        self,
        peer: Peer,
        dialect: Dialect,
        streams: ClientStreams,
        outgoing: Outgoing,
        meter: Meter,
        on_hung_up: Callable[[], None],
    ) -> None:
        self._peer = peer
        self._dialect = dialect
        self._streams = streams
        self._outgoing = outgoing
        self._meter = meter
        self._on_hung_up = on_hung_up
        self._logged: set[ErrorCode] = set()
        self._asked = False  # it closes once nothing waits
        self._error: StreamError | None = None  # because of which; None in good order
        self.hung_up = False

    def tell(self, error: StreamError, stream_id: StreamId | None) -> None:
        """Log an error, and tell the client. Raises as `Outgoing.send` does."""
        self._outgoing.send(self._noted(error, stream_id))

    def hang_up(self, error: StreamError | None) -> None:
        """Close once all is sent, because of an error or in good order."""
        self._asked, self._error = True, error
        self.drained()

    def cut_off(self, error: StreamError, stream_id: StreamId | None, *, is_over: bool) -> None:
        """Give up what waits, say why, and close.

        is_over: the last word was said before, and not read.
        """
        self._outgoing.clear()
        message = self._noted(error, stream_id)
        if is_over:
            self._peer.abort()
            return
        # Past the buffer: whatever the transport still takes is this message, then the end.
        if self._outgoing.is_open:
            for frame in self._dialect.encode(message, 0):
                self._peer.send(frame.data)
        self.hang_up(error)

    def drained(self) -> None:
        """More was sent: close where that is asked for, and nothing waits any more."""
        if not self._asked or self.hung_up or not self._outgoing.empty:
            return
        self.hung_up = True
        self._on_hung_up()
        error = self._error
        if self._outgoing.is_open or error is None:
            self._peer.close(self._dialect.farewell(error))
        else:
            retry_after_s = error.retry_after_s if isinstance(error, OverLimit) else None
            self._peer.refuse(self._dialect.refusal(error).after(retry_after_s))

    def _noted(self, error: StreamError, stream_id: StreamId | None) -> ErrorMessage:
        # A client may repeat at will what leaves its connection open: each code is worth one line.
        level = logging.DEBUG if error.code in self._logged else logging.INFO
        self._logged.add(error.code)
        self._meter.error(error)
        about: dict[str, object] = {"code": error.code.value}
        if stream_id is not None:
            about["stream_id"] = stream_id
        client = self._streams.client
        if client is not None and client.name:
            about["key_name"] = client.name
        logger.log(
            level,
            "%s: %s (key %s)",
            error.code.value,
            error.message,
            about.get("key_name", "-"),
            extra=about,
        )
        return ErrorMessage(error.code.value, error.message, stream_id)
