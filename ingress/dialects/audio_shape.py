"""The constant part of one client's audio messages, by which the next ones need no JSON parser.

A client's messages differ in their base64 only: the bytes before and after it stay the same. Base64 holds
neither a quote nor a backslash, so a message with a known beginning and end, and nothing but base64 between
them, is the known message with other samples. The JSON parser reads all other messages.
"""

from __future__ import annotations

import base64

import orjson

from common.client_codec import decode_base64
from common.messages import Audio, Encoding

# The search for the base64 of a tiny message is not worth it, nor certain enough.
_MIN_PAYLOAD_BYTES = 64


class AudioShape:
    """The constant part of a client's messages: the bytes before and after the base64, and the encoding.

    Not for float samples, which have to be checked one by one.
    """

    __slots__ = ("_encoding", "_head", "_last_byte", "_tail")

    def __init__(self, head: bytes, tail: bytes, encoding: Encoding) -> None:
        self._head = head
        self._tail = tail
        self._encoding = encoding
        self._last_byte = encoding.sample_bytes - 1

    @staticmethod
    def of(data: bytes, audio: Audio, field: str = "data") -> AudioShape | None:
        """Return the shape of a message that was decoded to `audio`; None where no shape is certain.

        field: the member of the message that holds the base64.
        """
        if audio.final or audio.encoding is Encoding.F32 or len(audio.payload) < _MIN_PAYLOAD_BYTES:
            return None
        head, found, tail = data.partition(base64.b64encode(audio.payload))
        # Parsing the rest proves that nothing but the value of the field was cut out.
        if not found or not head.endswith(b'"'):
            return None
        try:
            rest = orjson.loads(head + tail)
        except orjson.JSONDecodeError:
            return None
        return AudioShape(head, tail, audio.encoding) if rest.get(field) == "" else None

    def read(self, data: bytes) -> Audio | None:
        """Return the audio of a message of this shape; None for any other message."""
        head, tail = self._head, self._tail
        if not (data.startswith(head) and data.endswith(tail)):
            return None
        end = len(data) - len(tail)
        if end <= len(head):
            return None
        try:
            payload = decode_base64(memoryview(data)[len(head) : end])
        except ValueError:
            return None
        return None if len(payload) & self._last_byte else Audio(payload, self._encoding)
