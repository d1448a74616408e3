"""The compressed audio of one connection: in front of its decoder, and decoded."""

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

# Audio that was compressed may come faster than it can be recognised: it waits in front of its decoder.
_MAX_DECODED_AHEAD_S: Final = 20.0


class ClientMedia:
    """The decoder of one connection's audio, as far as its dialect has compressed audio (a `MediaSink`).

    max_undecoded_s: audio that its streams may have, accepted and not recognised.
    inlet: what the client says goes through it once it is there.
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
        """Have a decoder, where one is needed and not there. Raises Unavailable `no_free_stream`."""
        if self._dialect.media is not None and self.inlet is None:
            if self._decoders is None:
                raise AssertionError("compressed audio without decoders")
            self.inlet = MediaInlet(self._decoders, self._dialect.media, self)

    def take(self, inlet: MediaInlet, heard: Heard, num_bytes: int) -> None:
        """Put what was said, in so many bytes, behind the audio that is not decoded yet."""
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
        """No stream has begun for long: do without a decoder until one does."""
        if self.inlet is not None:
            self.inlet.park()

    def close(self) -> None:
        """Nothing more is decoded."""
        if self.inlet is not None:
            self.inlet.close()

    # MediaSink

    @property
    def takes_audio(self) -> bool:
        """Whether decoded audio may come now."""
        return not self._connection.reading.is_paused and self._connection.undecoded_s < self._max_ahead_s

    def decodes_at(self, sample_rate: int) -> None:
        """Note that decoded audio of this rate will come."""
        self._dialect.options = replace(self._dialect.options, sample_rate=sample_rate)

    def received_decoded(self, message: ClientMessage) -> None:
        """Take decoded audio, or what the client said behind it."""
        self._connection.received(message)

    def received_fault(self, error: StreamError) -> None:
        """Nothing more can be decoded."""
        self._connection.received_fault(error)

    def on_media_room(self) -> None:
        """Read again."""
        self._connection.reading.on_media_room()
