"""Client side of the two transports, without I/O: bytes to write, bytes to messages.

Frames are built once, when a load is prepared, and not when they are sent: the load generator must need far
less CPU for a stream than the server. RFC 6455.
"""

from __future__ import annotations

import base64
import hashlib
import os
import struct
from typing import Protocol

from common.addresses import host_and_port
from common.client_codec import encode_client_message
from common.messages import Auth

OP_TEXT = 1
OP_BINARY = 2
OP_CLOSE = 8
OP_PING = 9
OP_PONG = 10

_WEBSOCKET_GUID = b"258EAFA5-E914-47DA-95CA-C5AB0DC85B11"
MAX_HANDSHAKE_BYTES = 16384


class WireError(Exception):
    """The server sent bytes that the transport does not allow."""


def client_frame(opcode: int, payload: bytes, mask: bytes | None = None) -> bytes:
    """Return one final, masked frame, as clients have to send it.

    Args:
        opcode: one of the ``OP_`` constants.
        payload: at most 2**63 - 1 bytes.
        mask: four bytes; the default is random.
    """
    key = os.urandom(4) if mask is None else mask
    length = len(payload)
    if length < 126:
        head = struct.pack("!BB", 0x80 | opcode, 0x80 | length)
    elif length < 65536:
        head = struct.pack("!BBH", 0x80 | opcode, 0x80 | 126, length)
    else:
        head = struct.pack("!BBQ", 0x80 | opcode, 0x80 | 127, length)
    repeated = (key * (length // 4 + 1))[:length]
    masked = int.from_bytes(payload, "big") ^ int.from_bytes(repeated, "big")
    return head + key + masked.to_bytes(length, "big")


def upgrade_request(host: str, port: int, path: str, key: bytes, api_key: str = "") -> bytes:
    """Return the opening handshake; no extension is offered, so that no frame is compressed."""
    access = f"Authorization: Bearer {api_key}\r\n" if api_key else ""
    return (
        f"GET {path} HTTP/1.1\r\nHost: {host_and_port(host, port)}\r\nUpgrade: websocket\r\n"
        f"Connection: Upgrade\r\nSec-WebSocket-Key: {key.decode()}\r\n{access}"
        "Sec-WebSocket-Version: 13\r\n\r\n"
    ).encode()


def new_key() -> bytes:
    """Return a fresh ``Sec-WebSocket-Key``."""
    return base64.b64encode(os.urandom(16))


def accept_value(key: bytes) -> bytes:
    """Return the ``Sec-WebSocket-Accept`` value that the server must answer to ``key``."""
    return base64.b64encode(hashlib.sha1(key + _WEBSOCKET_GUID, usedforsecurity=False).digest())


class Decoder(Protocol):
    """Decodes the bytes of a socket into whole messages and into replies to the server."""

    def opening(self) -> bytes:
        """Return the bytes to write as soon as the socket is open."""

    def feed(self, data: bytes) -> tuple[list[bytes], bytes]:
        """Return the messages that ``data`` completed, and bytes to write back (pongs)."""


class LineDecoder:
    """Decoder of the newline-delimited messages of the TCP port."""

    __slots__ = ("_api_key", "_rest")

    def __init__(self, api_key: str = "") -> None:
        self._api_key = api_key
        self._rest = b""

    def opening(self) -> bytes:
        return encode_client_message(Auth(self._api_key)) + b"\n" if self._api_key else b""

    def feed(self, data: bytes) -> tuple[list[bytes], bytes]:
        lines = (self._rest + data).split(b"\n") if self._rest else data.split(b"\n")
        self._rest = lines.pop()
        return lines, b""


class WebSocketDecoder:
    """Decoder of the handshake and the server's unmasked frames; it joins fragments."""

    __slots__ = ("_api_key", "_fragments", "_key", "_open", "_rest", "_target")

    def __init__(self, host: str, port: int, path: str, api_key: str = "") -> None:
        self._target = (host, port, path)
        self._api_key = api_key
        self._key = new_key()
        self._open = False
        self._rest = b""
        self._fragments: list[bytes] | None = None

    def opening(self) -> bytes:
        return upgrade_request(*self._target, self._key, self._api_key)

    def feed(self, data: bytes) -> tuple[list[bytes], bytes]:
        if self._rest:
            data = self._rest + data
            self._rest = b""
        if not self._open:
            data = self._handshake(data)
            if not self._open:
                self._rest = data
                return [], b""
        messages: list[bytes] = []
        replies = b""
        position, end = 0, len(data)
        while end - position >= 2:
            first, length = data[position], data[position + 1]
            start = position + 2
            if length == 126:
                if end < start + 2:
                    break
                length = int.from_bytes(data[start : start + 2], "big")
                start += 2
            elif length == 127:
                if end < start + 8:
                    break
                length = int.from_bytes(data[start : start + 8], "big")
                start += 8
            elif length & 0x80:
                raise WireError("the server masked a frame")
            if end < start + length:
                break
            payload = data[start : start + length]
            position = start + length
            if first == 0x81:
                messages.append(payload)
            else:
                replies += self._rare(first, payload, messages)
        if position < end:
            self._rest = data[position:]
        return messages, replies

    def _rare(self, first: int, payload: bytes, messages: list[bytes]) -> bytes:
        opcode, final = first & 0x0F, first & 0x80
        if opcode == OP_PING:
            return client_frame(OP_PONG, payload)
        if opcode == OP_CLOSE:
            return client_frame(OP_CLOSE, payload[:2])
        if opcode == OP_PONG:
            return b""
        if opcode in (OP_TEXT, OP_BINARY) and not final:
            self._fragments = [payload]
        elif opcode == 0 and self._fragments is not None:
            self._fragments.append(payload)
            if final:
                messages.append(b"".join(self._fragments))
                self._fragments = None
        elif opcode == OP_BINARY:
            messages.append(payload)
        else:
            raise WireError(f"unexpected frame 0x{first:02x}")
        return b""

    def _handshake(self, data: bytes) -> bytes:
        end = data.find(b"\r\n\r\n")
        if end < 0:
            if len(data) > MAX_HANDSHAKE_BYTES:
                raise WireError("the handshake answer never ended")
            return data
        lines = data[:end].split(b"\r\n")
        if b" 101 " not in lines[0] + b" ":
            raise WireError(f"handshake refused: {lines[0].decode('latin-1')}")
        headers = {
            name.strip().lower(): value.strip()
            for name, _, value in (line.partition(b":") for line in lines[1:])
        }
        if headers.get(b"sec-websocket-accept") != accept_value(self._key):
            raise WireError("wrong Sec-WebSocket-Accept")
        self._open = True
        return data[end + 4 :]
