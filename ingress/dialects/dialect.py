"""What a connection asks of the protocol that its client speaks."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple, Protocol

from common.errors import StreamError
from common.messages import ClientMessage, ServerMessage, WarningMessage
from common.options import StreamOptions
from ingress.request import Request


class Farewell(NamedTuple):
    """How a connection is closed: the code and the reason of a WebSocket's close frame.

    error: why it is; None in good order.
    """

    error: StreamError | None
    code: int
    reason: str


class Dialect(Protocol):
    """One client protocol, on one connection, without any I/O.

    What it takes are bytes of the client, and what it gives are the messages of common/messages.py, whatever
    they look like on the wire; the same the other way. Which of them is allowed when is not its business, but
    that of ingress/protocol.py.

    options: of the streams, as far as the request says that opened the connection. A `Config` message says
        others.
    num_streams: streams of this connection: one for each channel of its audio, whose samples are interleaved.
    warning: what the client is to be told beside, or None. Whoever tells it sets None again.
    """

    options: StreamOptions
    num_streams: int
    warning: WarningMessage | None

    def decode_text(self, data: bytes) -> ClientMessage | None:
        """Take one line, or one text frame; None where it says nothing. Raises ClientFault."""

    def decode_binary(self, data: bytes) -> ClientMessage | None:
        """Take one binary frame; None where it says nothing. Raises ClientFault."""

    def resumed(self, options: StreamOptions, sample_rate: int) -> None:
        """The connection goes on with a stream that was begun with these options, at this rate in Hz."""

    def encode(self, message: ServerMessage, stream: int) -> bytes | None:
        """Write a message about one of the connection's streams; None for one that the client is not told."""

    def merge(self, earlier: ServerMessage, later: ServerMessage) -> ServerMessage | None:
        """Make one of two neighbouring messages, for a slow reader; None where both have to go."""

    def farewell(self, error: StreamError | None) -> Farewell:
        """How to close after an error, or in good order."""


DialectOf = Callable[[Request], Dialect]
"""Makes the dialect of a connection from the request that opens it; on the TCP port that has no head. Raises
Refused (ingress/http), which the client is told as a status, where the request is wrong."""
