"""The interface between a connection and the protocol that its client speaks."""

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

    says: the content that `Dialect.merge` can merge with a neighbour's; None for a frame that has to be sent
        as it is.
    """

    data: bytes
    says: object = None


class Farewell(NamedTuple):
    """The close of a connection: code and reason of a WebSocket's close frame.

    error: the reason for the close; None for a normal close.
    """

    error: StreamError | None
    code: int
    reason: str


Heard = ClientMessage | Media | list[ClientMessage] | None
"""A decoded frame: one message, several in order, compressed audio, or None: nothing for the streams."""


class Dialect(Protocol):
    """One client protocol, on one connection, without any I/O.

    It decodes the client's bytes to the messages of common/messages.py, and encodes the server's messages.
    ingress/protocol.py, and not the dialect, decides which message is allowed in which state.

    options: options of the streams, as stated in the request that opened the connection. A `Config` message
        replaces them. They are read when the first message begins the streams.
    num_streams: streams of this connection: one for each channel of its audio; the samples are interleaved.
    resumes: whether clients can resume the stream of a lost connection. If so, a client that is refused a
        stream may still send `Resume`; if not, its connection ends at once.
    admitted_first: whether a WebSocket opens only once the cluster has admitted its streams. A client that
        gets no stream then receives `refusal` over HTTP. Otherwise the WebSocket is open by then, and the
        client receives an error and the farewell.
    headers: headers of the response that opens the WebSocket, beside those of RFC 6455.
    media: format of the client's compressed audio, which is decoded to pcm16 with interleaved channels; None
        where it sends samples. `options` has the rate by the time at which the first samples come.
    replies: frames of the dialect's own: answers to messages that concern no stream, and warnings. The caller
        sends them after the effects of the decoded message, and empties the list.
    """

    options: StreamOptions
    num_streams: int
    resumes: bool
    admitted_first: bool
    headers: tuple[tuple[str, str], ...]
    media: MediaWanted | None
    replies: list[Frame]

    def decode_text(self, data: bytes) -> Heard:
        """Decode one line, or one text frame.

        Returns None where it holds nothing for the streams, and begins none. Raises ClientFault.
        """

    def decode_binary(self, data: bytes) -> Heard:
        """Decode one binary frame; return None where it holds nothing for the streams. Raises ClientFault."""

    def resumed(self, options: StreamOptions, sample_rate: int) -> None:
        """Note that the connection has resumed a stream with these options, at this rate in Hz."""

    def encode(self, message: ServerMessage, stream: int) -> Sequence[Frame]:
        """Encode a message about one of the connection's streams, as one frame or several.

        Returns no frame where the protocol has nothing to send. Called once for each message, in order.
        """

    def merge(self, earlier: object, later: object) -> Frame | None:
        """Merge two neighbours about one stream (their `Frame.says`) into one frame, for a slow reader.

        Returns None where both have to be sent.
        """

    def farewell(self, error: StreamError | None) -> Farewell:
        """Return code and reason of the close after an error; None is a normal close."""

    def refusal(self, error: StreamError) -> Refusal:
        """Return the answer to a request whose WebSocket is not opened, for this error (`admitted_first`)."""


DialectOf = Callable[[Request], Dialect]
"""Makes the dialect of a connection from the request that opens it; on the TCP port the request has no head.
Raises Refused (ingress/http/refusal.py) where the request is wrong; the client receives it as an HTTP
status."""
