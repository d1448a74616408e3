"""Checks of raw audio: detects other data by its first bytes, and float samples that are far too loud.

Neither check needs numpy: a container begins with bytes that no raw audio begins with, and the highest byte
of a float32 holds its magnitude.
"""

from __future__ import annotations

import re
from typing import Final

from common.errors import ClientFault, ErrorCode, WarningCode
from common.messages import WarningMessage

# Ten random bytes, let alone quiet samples, match one of these once in four thousand million streams.
_CONTAINER: Final = re.compile(
    rb"(?P<WebM>\x1aE\xdf\xa3)|(?P<Ogg>OggS\0)|(?P<FLAC>fLaC)|(?P<MP3>ID3[\x02-\x04][^\xff])"
    rb"|(?P<WAV>(RIFF|RF64|RIFX).{4}WAVE)|(?P<MP4>\0\0..[fs]typ)|(?P<AIFF>FORM.{4}AIF[CF])"
    rb"|(?P<AMR>#!AMR)|(?P<AU>\.snd\0\0)",
    re.DOTALL,
)
_HEAD_BYTES: Final = 12
_MESSAGE: Final = re.compile(rb'\s*\{\s*"')
_TYPE: Final = b'"type"'


def message_in_binary(payload: bytes) -> ClientFault | None:
    """Return the fault of a binary frame that holds a JSON message, as some libraries send; else None."""
    if _MESSAGE.match(payload) is None or _TYPE not in payload:
        return None
    return ClientFault(
        ErrorCode.BAD_MESSAGE,
        "A binary frame is audio, and this one holds JSON: send messages as text frames.",
    )


class AudioHead:
    """The first bytes of a stream, kept until they show whether the stream is a container."""

    __slots__ = ("_bytes", "known")

    def __init__(self) -> None:
        self._bytes = b""
        self.known = False

    def push(self, payload: bytes) -> ClientFault | None:
        """Take the next audio; return the fault if the stream begins like a container, else None."""
        self._bytes += payload[: _HEAD_BYTES - len(self._bytes)]
        self.known = len(self._bytes) == _HEAD_BYTES
        found = _CONTAINER.match(self._bytes)
        if found is None:
            return None
        return ClientFault(
            ErrorCode.WRONG_ENCODING,
            f"The audio is {found.lastgroup}, a container: decode it, and send raw samples.",
        )


# The highest byte holds a float32's sign and the upper seven bits of its exponent. Without the lowest bit of
# the exponent, the bounds lie at powers of four: 2.0 and 512.0 are the first values that begin with 0x40 and
# 0x44.
_UP_TO_2: Final = bytes(byte for byte in range(256) if byte & 0x7F < 0x40)
_UP_TO_512: Final = bytes(byte for byte in range(256) if byte & 0x7F < 0x44)
# Speech on the scale of integers has this many samples over 512 within its first syllable.
_INTEGER_SCALE_S: Final = 0.05
_LOUD_SHARE: Final = 0.25


class LevelMeter:
    """Measures the level of one stream's float samples, and returns one warning if it is wrong.

    sample_rate: rate of the audio, Hz.
    """

    __slots__ = ("_heard", "_loud", "_sample_rate", "_told", "_very_loud")

    def __init__(self, sample_rate: int) -> None:
        self._sample_rate = sample_rate
        self._heard = 0  # samples of the second that is being measured
        self._loud = 0  # samples of that second beyond 2.0
        self._very_loud = 0  # samples of the stream beyond 512.0
        self._told = False

    def push(self, payload: bytes) -> WarningMessage | None:
        """Take the next f32 samples; return a warning at the first samples that deserve one, else None."""
        if self._told:
            return None
        highest = payload[3::4]
        self._heard += len(highest)
        loud = highest.translate(None, _UP_TO_2)
        if loud:
            self._loud += len(loud)
            self._very_loud += len(loud.translate(None, _UP_TO_512))
            if self._very_loud > _INTEGER_SCALE_S * self._sample_rate:
                self._told = True
                return WarningMessage(
                    WarningCode.INTEGER_SCALE,
                    "The samples are hundreds of times louder than full scale, which is from -1.0 to 1.0: "
                    "samples in the scale of 16-bit integers have to be divided by 32768.",
                )
        if self._heard < self._sample_rate:
            return None
        too_loud = self._loud > _LOUD_SHARE * self._heard
        self._heard = self._loud = 0
        if not too_loud:
            return None
        self._told = True
        return WarningMessage(
            WarningCode.OVER_FULL_SCALE,
            "A quarter of the samples of a second are beyond 2.0, twice full scale: the gain is too high.",
        )
