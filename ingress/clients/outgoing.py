"""What goes to one client: messages in its dialect, the error that ends its connection, and the close."""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import dataclass

from common.entries import StreamId
from common.errors import ErrorCode, StreamError
from common.messages import ErrorMessage, ServerMessage
from ingress.auth.guard import OverLimit
from ingress.dialects.dialect import Dialect
from ingress.meter import Meter
from ingress.sockets.peer import Peer
from ingress.sockets.send_buffer import SendBuffer

logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class _Ending:
    """The connection closes once the buffer is empty, because of an error or in good order (None)."""

    error: StreamError | None


class Outgoing:
    """One connection's way to its client.

    max_bytes: that may wait for a client that does not read.
    on_hung_up: called once, when the connection is closed from here.
    is_open: whether the client may be told anything: a WebSocket may be waiting for its opening.
    hung_up: whether the close is under way.
    """

    __slots__ = (
        "_buffer",
        "_dialect",
        "_ending",
        "_logged",
        "_lost",
        "_meter",
        "_on_hung_up",
        "_peer",
        "hung_up",
        "is_open",
    )

    def __init__(
        self, peer: Peer, dialect: Dialect, meter: Meter, max_bytes: int, on_hung_up: Callable[[], None]
    ) -> None:
        self._peer = peer
        self._dialect = dialect
        self._meter = meter
        self._on_hung_up = on_hung_up
        self._buffer = SendBuffer(self._write, dialect, max_bytes)
        self._logged: set[ErrorCode] = set()
        self._ending: _Ending | None = None
        self._lost = False
        self.is_open = False
        self.hung_up = False

    @property
    def waiting_bytes(self) -> int:
        """Bytes that wait for the client to read."""
        return self._buffer.waiting_bytes

    @property
    def num_merged(self) -> int:
        """Messages that went into a later one."""
        return self._buffer.num_merged

    def open(self) -> None:
        """Open the WebSocket, where it is not open."""
        if not self.is_open:
            self.is_open = True
            self._peer.accept(self._dialect.headers)

    def lost(self) -> None:
        """Note that the socket is gone: nothing is sent any more."""
        self._lost = True

    def send(self, message: ServerMessage, stream: int = 0, *, mergeable: bool = False) -> None:
        """Send a message about one of the streams, as `SendBuffer.send` does. Raises ClientFault."""
        if not self._lost and self.is_open:
            self._buffer.send(message, stream, mergeable=mergeable)

    def reply(self) -> None:
        """Send what the dialect has to say by itself. Raises ClientFault."""
        replies, self._dialect.replies = self._dialect.replies, []
        if not self._lost:
            self._buffer.send_frames(replies)

    def send_error(self, error: StreamError, stream_id: StreamId | None) -> None:
        """Log an error, and tell the client. Raises ClientFault."""
        self.send(self._logged_error(error, stream_id))

    def hang_up(self, error: StreamError | None) -> None:
        """Close once all is sent, because of an error or in good order."""
        self._ending = _Ending(error)
        if self._buffer.empty:
            self._close_if_asked()

    def cut_off(self, error: StreamError, stream_id: StreamId | None, *, is_over: bool) -> None:
        """Give up what waits, say why, and close.

        is_over: the last word was said before, and not read.
        """
        self._buffer.clear()
        message = self._logged_error(error, stream_id)
        if is_over:
            self._peer.abort()
            return
        # Past the buffer: whatever the transport still takes is this message, then the end.
        if self.is_open:
            for frame in self._dialect.encode(message, 0):
                self._peer.send(frame.data)
        self._ending = _Ending(error)
        self._close_if_asked()

    def pause(self) -> None:
        """Note that the transport's buffer is full."""
        self._buffer.pause()

    def resume(self) -> None:
        """Note that the transport's buffer has drained."""
        self._buffer.resume()
        if self._buffer.empty:
            self._close_if_asked()

    def _close_if_asked(self) -> None:
        if self._ending is None or self.hung_up:
            return
        self.hung_up = True
        self._on_hung_up()
        error = self._ending.error
        if self.is_open or error is None:
            self._peer.close(self._dialect.farewell(error))
        else:
            retry_after_s = error.retry_after_s if isinstance(error, OverLimit) else None
            self._peer.refuse(self._dialect.refusal(error).after(retry_after_s))

    def _logged_error(self, error: StreamError, stream_id: StreamId | None) -> ErrorMessage:
        # A client may repeat at will what leaves its connection open: each code is worth one line.
        level = logging.DEBUG if error.code in self._logged else logging.INFO
        self._logged.add(error.code)
        self._meter.error(error)
        about: dict[str, object] = {"code": error.code.value}
        if stream_id is not None:
            about["stream_id"] = stream_id
        logger.log(level, "%s: %s", error.code.value, error.message, extra=about)
        return ErrorMessage(error.code.value, error.message, stream_id)

    def _write(self, data: bytes) -> None:
        self._meter.sent(len(data))
        self._peer.send(data)
