"""What a recording of bytes says: requests with their answers, the frames of a WebSocket, lines of TCP.

Apart from the server's own readers on purpose: what those two got wrong together would not be seen.
"""

from __future__ import annotations

import base64
import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from math import inf
from typing import Any, Final

import httptools

from tests.clients.recorder import Recording

TEXT: Final = 1
BINARY: Final = 2
CLOSE: Final = 8
_CONTROL: Final = 8
_CUTS: Final = ("finalize", "Finalize", "input_audio_buffer.commit")


@dataclass(frozen=True, slots=True)
class Frame:
    """A whole message of a WebSocket, or a control frame; `at_s` is when its last byte went by."""

    at_s: float
    opcode: int
    payload: bytes


@dataclass(slots=True)
class Message:
    """A request or an answer."""

    target: str = ""
    status: int = 0
    headers: dict[str, str] = field(default_factory=dict)
    body: bytes = b""

    def on_url(self, url: bytes) -> None:
        self.target += url.decode()

    def on_header(self, name: bytes, value: bytes) -> None:
        self.headers[name.decode().lower()] = value.decode()

    def on_body(self, body: bytes) -> None:
        self.body += body


class _Messages:
    """Callbacks of httptools: collects the messages of one direction."""

    def __init__(self) -> None:
        self.all: list[Message] = []

    def on_message_begin(self) -> None:
        self.all.append(Message())

    def on_url(self, url: bytes) -> None:
        self.all[-1].on_url(url)

    def on_header(self, name: bytes, value: bytes) -> None:
        self.all[-1].on_header(name, value)

    def on_body(self, body: bytes) -> None:
        self.all[-1].on_body(body)


@dataclass(frozen=True, slots=True)
class Exchange:
    """A request and its answer."""

    request: Message
    response: Message

    @property
    def path(self) -> str:
        return self.request.target.partition("?")[0]


@dataclass(frozen=True, slots=True)
class Conversation:
    """A connection of the WebSocket port. from_client, from_server: frames, where it was upgraded."""

    exchanges: tuple[Exchange, ...]
    from_client: tuple[Frame, ...]
    from_server: tuple[Frame, ...]

    @property
    def path(self) -> str:
        """Path of the last request."""
        return self.exchanges[-1].path if self.exchanges else ""

    @property
    def is_websocket(self) -> bool:
        return bool(self.exchanges) and self.exchanges[-1].response.status == 101

    def messages(self) -> list[dict[str, Any]]:
        """The server's text frames."""
        return [json.loads(frame.payload) for frame in self.from_server if frame.opcode == TEXT]

    @property
    def close_code(self) -> int | None:
        """The code of the server's close frame: 1005 for one without, None without a frame."""
        closes = [frame for frame in self.from_server if frame.opcode == CLOSE]
        if not closes:
            return None
        return int.from_bytes(closes[0].payload[:2], "big") if closes[0].payload else 1005

    @property
    def client_left(self) -> bool:
        """Whether the client closed before the server did: it reads nothing that was still to come."""
        client, server = (
            min((frame.at_s for frame in side if frame.opcode == CLOSE), default=inf)
            for side in (self.from_client, self.from_server)
        )
        return client < server

    def pieces(self) -> tuple[bytes, ...]:
        """The client's audio, cut where it asked for the text of all before.

        Audio is binary frames, and the base64 of `audio` messages and appended buffers.
        """
        pieces = [b""]
        for frame in self.from_client:
            if frame.opcode == BINARY:
                pieces[-1] += frame.payload
            elif frame.opcode == TEXT:
                message = json.loads(frame.payload)
                pieces[-1] += base64.b64decode(message.get("audio") or message.get("data") or "")
                if message["type"] in _CUTS:
                    pieces.append(b"")
        return tuple(pieces)

    def audio_ended_s(self) -> float:
        """When the last audio of the client went by."""
        return max(frame.at_s for frame in self.from_client if _has_audio(frame))


def _has_audio(frame: Frame) -> bool:
    return frame.opcode == BINARY or (frame.opcode == TEXT and b'"audio"' in frame.payload)


def read(recording: Recording) -> Conversation:
    """Return what a connection of the WebSocket port carried. Raises ValueError and httptools' errors."""
    requests, sent = _http(recording.sent, httptools.HttpRequestParser)
    responses, received = _http(recording.received, httptools.HttpResponseParser)
    answers = [message for message in responses if message.status != 100]
    exchanges = tuple(Exchange(*pair) for pair in zip(requests, answers, strict=False))
    return Conversation(exchanges, tuple(_frames(sent)), tuple(_frames(received)))


def _http(
    pieces: Sequence[tuple[float, bytes]], parser_type: type[Any]
) -> tuple[list[Message], list[tuple[float, bytes]]]:
    """Return the messages, and what came behind an upgrade."""
    messages = _Messages()
    parser = parser_type(messages)
    for number, (at_s, piece) in enumerate(pieces):
        try:
            parser.feed_data(piece)
        except httptools.HttpParserUpgrade as upgrade:
            rest = piece[upgrade.args[0] :]
            return _finished(messages, parser), [(at_s, rest), *pieces[number + 1 :]]
        _finished(messages, parser)
    return messages.all, []


def _finished(messages: _Messages, parser: Any) -> list[Message]:
    if messages.all and hasattr(parser, "get_status_code"):
        messages.all[-1].status = parser.get_status_code()
    return messages.all


def _frames(pieces: Sequence[tuple[float, bytes]]) -> Iterator[Frame]:
    """Yield messages and control frames. Raises ValueError where RFC 6455 is broken."""
    buffer, message, opcode_of_message = b"", b"", 0
    for at_s, piece in pieces:
        buffer += piece
        while (parsed := _frame(buffer)) is not None:
            is_last, opcode, payload, size = parsed
            buffer = buffer[size:]
            if opcode >= _CONTROL:
                if not is_last or len(payload) > 125:
                    raise ValueError("a control frame in parts, or a long one")
                yield Frame(at_s, opcode, payload)
                continue
            if (opcode == 0) != bool(opcode_of_message):
                raise ValueError("a continuation of nothing, or a message within another")
            message += payload
            opcode_of_message = opcode_of_message or opcode
            if is_last:
                yield Frame(at_s, opcode_of_message, message)
                message, opcode_of_message = b"", 0


def _frame(data: bytes) -> tuple[bool, int, bytes, int] | None:
    """Return whether the frame is the last of its message, its opcode, payload and size; None for a part."""
    if len(data) < 2:
        return None
    if data[0] & 0x70:
        raise ValueError("a reserved bit is set, though no extension was agreed on")
    size, head = data[1] & 0x7F, 2
    if size >= 126:
        width = 2 if size == 126 else 8
        size, head = int.from_bytes(data[2 : 2 + width], "big"), 2 + width
    masked = bool(data[1] & 0x80)
    start = head + 4 * masked
    if len(data) < start + size:
        return None
    payload = data[start : start + size]
    if masked:
        mask = data[head:start]
        payload = bytes(byte ^ mask[at % 4] for at, byte in enumerate(payload))
    return bool(data[0] & 0x80), data[0] & 0x0F, payload, start + size
