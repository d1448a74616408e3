"""Raw audio from clients' frames to `Audio`: joins samples that were cut, and rejects other data."""

from __future__ import annotations

from typing import Final

from common.client_codec import checked_audio, odd_byte_count
from common.errors import ClientFault
from common.messages import Audio, Encoding, WarningMessage
from ingress.dialects.audio_check import AudioHead, LevelMeter

_F32: Final = Encoding.F32


class AudioInput:
    """The audio of one connection.

    encoding: encoding of binary frames.   sample_rate: Hz.   num_channels: channels, interleaved.
    """

    __slots__ = ("_frame_bytes", "_head", "_level", "_rest", "encoding", "sample_rate")

    def __init__(self, encoding: Encoding, sample_rate: int, num_channels: int = 1) -> None:
        self.encoding = encoding
        self.sample_rate = sample_rate
        self._frame_bytes = encoding.sample_bytes * num_channels
        self._head: AudioHead | None = AudioHead()
        self._level: LevelMeter | None = None
        self._rest = b""  # beginning of a sample, or of one sample of each channel, that a frame has cut

    def binary(self, payload: bytes) -> Audio:
        """Take a binary frame; return the whole samples that there are by now, not yet checked.

        Raises ClientFault `bad_samples`.
        """
        if self._rest:
            payload = self._rest + payload
            self._rest = b""
        cut = len(payload) % self._frame_bytes
        if cut:
            self._rest = payload[-cut:]
            payload = payload[:-cut]
        if self.encoding is _F32:
            return checked_audio(payload, _F32)
        return Audio(payload, self.encoding)  # samples of integers have no wrong values

    def check(self, audio: Audio) -> WarningMessage | None:
        """Check the next audio; return a warning for its client, or None.

        Raises ClientFault where the stream begins like a container.
        """
        if self._head is not None:
            fault = self._head.push(audio.payload)
            if fault is not None:
                raise fault
            if self._head.known:
                self._head = None
        if audio.encoding is not _F32:
            return None
        if self._level is None:
            self._level = LevelMeter(self.sample_rate)
        return self._level.push(audio.payload)

    def end_of_frames(self) -> ClientFault | None:
        """Return the fault if the binary frames, which end here, end within a sample; else None."""
        rest, self._rest = self._rest, b""
        return odd_byte_count(len(rest), self.encoding) if rest else None

    def goes_on(self) -> None:
        """Note that the audio begins in the middle of a stream."""
        self._head = None
