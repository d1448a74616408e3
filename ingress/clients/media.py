"""The compressed audio of one connection, on its way through a decoder."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Final

from common.errors import StreamError
from common.messages import ClientMessage
from ingress.dialects.dialect import Dialect, Heard
from ingress.media.decoder import Decoders
from ingress.media.inlet import MediaInlet

if TYPE_CHECKING:
    from ingress.clients.connection import Connection

# Compressed audio may come faster than it can be recognised: it waits in front of its decoder.
_MAX_DECODED_AHEAD_S: Final = 20.0


class ClientMedia:
    """The decoder of one connection's audio, where its dialect has compressed audio (a `MediaSink`).

    max_undecoded_s: most audio of its streams that is accepted and not recognised yet.
    inlet: takes all messages of the client, once it exists.
    """

    __slots__ = ("_connection", "_decoders", "_dialect", "_max_ahead_s", "inlet")

    def __init__(
        self, connection: Connection, dialect: Dialect, decoders: Decoders | None, max_undecoded_s: float
    ) -> None:
        self._connection = connection
        self._dialect = dialect
        self._decoders = decoders
        self._max_ahead_s = min(_MAX_DECODED_AHEAD_S, max_undecoded_s / 2)
        self.inlet: MediaInlet | None = None

    def open(self) -> None:
        """Take a decoder, if one is needed and not there. Raises Unavailable `no_free_stream`."""
        if self._dialect.media is not None and self.inlet is None:
            if self._decoders is None:
                raise AssertionError("compressed audio without decoders")
            self.inlet = MediaInlet(self._decoders, self._dialect.media, self)

    def take(self, inlet: MediaInlet, heard: Heard, num_bytes: int) -> None:
        """Queue a client's message of `num_bytes` bytes behind the audio that is not decoded yet."""
        for item in heard if isinstance(heard, list) else (heard,):
            if item is not None:
                inlet.take(item, num_bytes)

    @property
    def is_full(self) -> bool:
        """Whether the client should not be read for now."""
        return self.inlet is not None and self.inlet.is_full

    def room(self) -> None:
        """Tell the decoder that the streams may take audio again."""
        if self.inlet is not None:
            self.inlet.room()

    def park(self) -> None:
        """Return the decoder until a stream begins: none has begun for long."""
        if self.inlet is not None:
            self.inlet.park()

    def close(self) -> None:
        """Stop decoding."""
        if self.inlet is not None:
            self.inlet.close()

    # MediaSink

    @property
    def takes_audio(self) -> bool:
        """Whether the connection accepts decoded audio now."""
        return not self._connection.reading.is_paused and self._connection.undecoded_s < self._max_ahead_s

    def decodes_at(self, sample_rate: int) -> None:
        """Note that decoded audio of this rate will come."""
        self._dialect.options = replace(self._dialect.options, sample_rate=sample_rate)

    def received_decoded(self, message: ClientMessage) -> None:
        """Take decoded audio, or a message of the client that followed it."""
        self._connection.received(message)

    def received_fault(self, error: StreamError) -> None:
        """Take the fault that ended the decoding."""
        self._connection.received_fault(error)

    def on_media_room(self) -> None:
        """Read the client again."""
        self._connection.reading.on_media_room()
