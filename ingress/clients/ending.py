"""The end of a connection: the error for the client, the messages that still wait, and the close."""

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
    """Sends the errors of one connection, and closes it.

    streams: the streams of the connection, which know its client.
    outgoing: messages that wait there are sent first.
    on_hung_up: called once, when this object closes the connection.
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
        self._asked = False  # whether to close once no message waits
        self._error: StreamError | None = None  # the reason for the close; None for a normal one
        self.hung_up = False

    def tell(self, error: StreamError, stream_id: StreamId | None) -> None:
        """Log an error, and send it to the client. Raises ClientFault `slow_reader`."""
        self._outgoing.send(self._noted(error, stream_id))

    def hang_up(self, error: StreamError | None) -> None:
        """Close once all messages are sent. error: the reason; None for a normal close."""
        self._asked, self._error = True, error
        self.drained()

    def cut_off(self, error: StreamError, stream_id: StreamId | None, *, is_over: bool) -> None:
        """Drop the messages that wait, send the error, and close.

        is_over: whether the last message was sent before, and not read.
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
        """Note that messages were sent: close if a close is pending and no message waits any more."""
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
        # A client may repeat faults that leave its connection open: each code is logged once.
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
