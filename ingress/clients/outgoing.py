"""The messages to one client, with a bounded buffer for a client that reads more slowly than results come.

While the socket takes data, messages pass straight through. Otherwise they wait here: the dialect merges
neighbours where it can, such as partial results, and every other message keeps its place. A slow reader loses
nothing but intermediate texts. A client that does not read at all costs bounded memory until it is dropped.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Final

from common.errors import ClientFault, ErrorCode
from common.messages import ServerMessage
from ingress.dialects.dialect import Dialect, Frame
from ingress.meter import Meter
from ingress.sockets.peer import Peer


@dataclass(slots=True)
class _Waiting:
    """A frame for the client; its content and its stream too, if it can be merged."""

    data: bytes
    says: object
    stream: int


# Overhead of a message beside its bytes; counting it bounds the number of small messages too.
_OVERHEAD_BYTES: Final = 128
# Each result carries the whole transcript, so after hours one result is longer than the bound. A partial, a
# turn, a partial and the final result may wait all the same, up to a bound that only a flood of text reaches.
_FEW: Final = 4
_FEW_TIMES_MAX: Final = 16


class Outgoing:
    """Order and bound of the messages to one client.

    dialect: encodes messages, and merges neighbours.
    max_bytes: most bytes that wait here, after merging; the transport's own buffer comes on top. Four
        messages may exceed it, up to 16 times.
    is_open: whether messages can be sent: a WebSocket may still be waiting for its opening.
    lost: whether the socket is gone; nothing is sent any more.
    num_merged: messages that were merged into a later one.
    """

    __slots__ = (
        "_bytes",
        "_dialect",
        "_max_bytes",
        "_meter",
        "_peer",
        "_room",
        "_waiting",
        "is_open",
        "lost",
        "num_merged",
    )

    def __init__(self, peer: Peer, dialect: Dialect, meter: Meter, max_bytes: int) -> None:
        self._peer = peer
        self._dialect = dialect
        self._meter = meter
        self._max_bytes = max_bytes
        self._waiting: deque[_Waiting] = deque()
        self._bytes = 0
        self._room = True  # the transport takes data
        self.lost = False
        self.is_open = False
        self.num_merged = 0

    def open(self) -> None:
        """Open the WebSocket, if it is not open."""
        if not self.is_open:
            self.is_open = True
            self._peer.accept(self._dialect.headers)

    def send(self, message: ServerMessage, stream: int = 0, *, mergeable: bool = False) -> None:
        """Send one message, now or when the client has read the messages before it.

        stream: number of the stream that the message is about.
        mergeable: whether it may be merged with a neighbour about the same stream.
        Raises ClientFault `slow_reader` when more bytes wait than allowed; none of them is lost by then, and
        no more can be kept.
        """
        if not self.lost and self.is_open:
            self._send_frames(self._dialect.encode(message, stream), stream, mergeable=mergeable)

    def reply(self) -> None:
        """Send the dialect's own replies. Raises ClientFault `slow_reader`, as `send` does."""
        replies, self._dialect.replies = self._dialect.replies, []
        if not self.lost:
            self._send_frames(replies, 0, mergeable=False)

    def _send_frames(self, frames: Iterable[Frame], stream: int, *, mergeable: bool) -> None:
        for data, says in frames:
            if self._room and not self._waiting:
                self._meter.sent(len(data))
                self._peer.send(data)  # which may have `pause` called
            elif not (mergeable and says is not None and self._merged_with_last(says, stream)):
                self._waiting.append(_Waiting(data, says if mergeable else None, stream))
                self._bytes += len(data) + _OVERHEAD_BYTES
        if self._bytes > self._max_bytes and self._too_much():
            raise ClientFault(
                ErrorCode.SLOW_READER,
                f"More than {self._max_bytes} bytes of results wait to be read: read while you send.",
            )

    def _merged_with_last(self, says: object, stream: int) -> bool:
        if not self._waiting:
            return False
        last = self._waiting[-1]
        if last.says is None or last.stream != stream:
            return False
        merged = self._dialect.merge(last.says, says)
        if merged is None:
            return False
        self._bytes += len(merged.data) - len(last.data)
        last.data, last.says = merged
        self.num_merged += 1
        return True

    def _too_much(self) -> bool:
        return len(self._waiting) > _FEW or self._bytes > self._max_bytes * _FEW_TIMES_MAX

    def pause(self) -> None:
        """Buffer messages: the transport's buffer is full."""
        self._room = False

    def resume(self) -> None:
        """Send the buffered messages: the transport takes data again. It may call `pause` meanwhile."""
        self._room = True
        while self._room and self._waiting:
            data = self._waiting.popleft().data
            self._bytes -= len(data) + _OVERHEAD_BYTES
            self._meter.sent(len(data))
            self._peer.send(data)

    def clear(self) -> None:
        """Drop the messages that wait."""
        self._waiting.clear()
        self._bytes = 0

    @property
    def empty(self) -> bool:
        """Whether no message waits."""
        return not self._waiting

    @property
    def waiting_bytes(self) -> int:
        """Size of the waiting messages, the overhead of each included."""
        return self._bytes
