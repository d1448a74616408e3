"""What a connection asks of the protocol that its client speaks."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple, Protocol

from common.errors import StreamError
from common.messages import ClientMessage, ServerMessage
from common.options import StreamOptions
from ingress.http.refusal import Refusal
from ingress.media.wanted import Media, MediaWanted
from ingress.request import Request


class Frame(NamedTuple):
    """One message on the wire: a line of TCP, or a text frame.

    says: what of it can be merged with a neighbour, for `Dialect.merge`; None for a frame that has to go as
        it is.
    """

    data: bytes
    says: object = None


class Farewell(NamedTuple):
    """How a connection is closed: the code and the reason of a WebSocket's close frame.

    error: why it is; None in good order.
    """

    error: StreamError | None
    code: int
    reason: str


Heard = ClientMessage | Media | list[ClientMessage] | None
"""What a frame says: one message, several in their order, nothing to the streams; or compressed audio."""


class Dialect(Protocol):
    """One client protocol, on one connection, without any I/O.

    It takes bytes of the client and returns the messages of common/messages.py, whatever they
    look like on the wire; the same the other way. Which of them is allowed when is not its business, but
    that of ingress/protocol.py.

    options: of the streams, as far as the request says that opened the connection. A `Config` message says
        others. They are read when the first message begins the streams.
    num_streams: streams of this connection: one for each channel of its audio, whose samples are interleaved.
    resumes: whether its clients can go on with the stream of a lost connection. Where they can, a client that
        is refused a stream may still send `Resume`; where not, its connection ends at once.
    admitted_first: whether a WebSocket opens only once the cluster has streams for it. A client that gets
        none is answered by `refusal`, as HTTP. Otherwise the WebSocket is open by then, and an error and the
        farewell say so.
    headers: of the response that opens the WebSocket, beside those of RFC 6455.
    media: compressed audio that the client sends, which is decoded to pcm16, channels interleaved; None where
        it sends samples. `options` has the rate by the time at which the first samples come.
    replies: what the dialect has to say by itself of what it has decoded: answers to messages that concern no
        stream, warnings. Whoever sends them empties the list, behind what the message has brought about.
    """

    options: StreamOptions
    num_streams: int
    resumes: bool
    admitted_first: bool
    headers: tuple[tuple[str, str], ...]
    media: MediaWanted | None
    replies: list[Frame]

    def decode_text(self, data: bytes) -> Heard:
        """Take one line, or one text frame.

        Returns None where it says nothing to the streams, and begins none. Raises ClientFault.
        """

    def decode_binary(self, data: bytes) -> Heard:
        """Take one binary frame; None where it says nothing. Raises ClientFault."""

    def resumed(self, options: StreamOptions, sample_rate: int) -> None:
        """Go on with a stream that was begun with these options, at this rate in Hz."""

    def encode(self, message: ServerMessage, stream: int) -> Sequence[Frame]:
        """Write a message about one of the connection's streams, in one frame or several.

        Returns no frame where the client is not told. Called once for each message, in order.
        """

    def merge(self, earlier: object, later: object) -> Frame | None:
        """Make one frame of what two neighbours about one stream say (`Frame.says`), for a slow reader.

        Returns None where both have to go.
        """

    def farewell(self, error: StreamError | None) -> Farewell:
        """How to close after an error, or in good order."""

    def refusal(self, error: StreamError) -> Refusal:
        """How to answer a request whose WebSocket is not opened for this reason (`admitted_first`)."""


DialectOf = Callable[[Request], Dialect]
"""Makes the dialect of a connection from the request that opens it; on the TCP port that has no head. Raises
Refused (ingress/http/refusal.py), which the client is told as a status, where the request is wrong."""
