"""Converts samples of any width to mono 16-bit, at a rate that servers accept. Plain Python, without numpy.

Samples are in this machine's byte order in an `array("h")`; only `to_bytes` makes them little-endian.
"""

from __future__ import annotations

import array
import math
import sys
from typing import Final

from common.mixer import Samples
from common.options import MAX_SAMPLE_RATE, MIN_SAMPLE_RATE
from common.wav_head import SampleKind

_FULL_SCALE: Final = 32_768


def _mulaw(code: int) -> int:
    """Decode one sample of ITU-T G.711 mu-law."""
    code ^= 0xFF
    magnitude = (((code & 15) << 3) + 132 << (code >> 4 & 7)) - 132
    return -magnitude if code & 0x80 else magnitude


def _alaw(code: int) -> int:
    """Decode one sample of ITU-T G.711 A-law."""
    code ^= 0x55
    exponent, mantissa = code >> 4 & 7, ((code & 15) << 4) + 8
    magnitude = mantissa if exponent == 0 else mantissa + 256 << exponent - 1
    return magnitude if code & 0x80 else -magnitude


_OF_A_BYTE: Final[dict[SampleKind, tuple[int, ...]]] = {
    "integer": tuple((code - 128) << 8 for code in range(256)),  # WAV's 8-bit samples have no sign
    "mulaw": tuple(map(_mulaw, range(256))),
    "alaw": tuple(map(_alaw, range(256))),
}


def from_bytes(data: bytes, kind: SampleKind, width: int, *, big_endian: bool = False) -> Samples:
    """Return 16-bit samples: the upper 16 bits of wider integers, and floats with 1.0 as full scale.

    data: whole samples of `width` bytes.   kind: integers of one byte are unsigned, others are signed.
    """
    if kind == "float":
        return _from_floats(array.array("f" if width == 4 else "d", data), big_endian=big_endian)
    if width == 1:
        return array.array("h", map(_OF_A_BYTE[kind].__getitem__, data))
    upper, lower = (0, 1) if big_endian else (width - 1, width - 2)
    if sys.byteorder == "big":
        upper, lower = lower, upper
    pairs = bytearray(len(data) // width * 2)
    pairs[0::2], pairs[1::2] = data[lower::width], data[upper::width]
    return array.array("h", bytes(pairs))


def _from_floats(values: array.array[float], *, big_endian: bool) -> Samples:
    if big_endian != (sys.byteorder == "big"):
        values.byteswap()

    def sample(value: float) -> int:
        if -1.0 <= value < 1.0:
            return int(value * _FULL_SCALE)
        return 0 if math.isnan(value) else _FULL_SCALE - 1 if value > 0 else -_FULL_SCALE

    return array.array("h", map(sample, values))


def to_bytes(samples: Samples) -> bytes:
    """Return samples as pcm16: little-endian bytes."""
    if sys.byteorder == "big":
        samples = samples[:]
        samples.byteswap()
    return samples.tobytes()


class RateFit:
    """Converts a rate outside of 8 to 48 kHz into that range, by a whole factor; other rates stay unchanged.

    The server resamples its audio with a proper filter. Here neighbours are averaged, or interpolated
    linearly, which loses nothing of the band that recognition uses.
    """

    def __init__(self, rate: int) -> None:
        """rate: samples a second, at least 1."""
        self._down = -(-rate // MAX_SAMPLE_RATE)
        self._up = -(-MIN_SAMPLE_RATE // rate)
        self._rest: Samples = array.array("h")
        self.rate: Final = round(rate * self._up / self._down)

    def fit(self, samples: Samples) -> Samples:
        """Return the samples at `rate`; an incomplete group waits for the next samples."""
        if self._down > 1:
            samples = self._rest + samples
            whole = len(samples) - len(samples) % self._down
            samples, self._rest = samples[:whole], samples[whole:]
            groups = zip(*(samples[at :: self._down] for at in range(self._down)), strict=True)
            return array.array("h", (sum(group) // self._down for group in groups))
        if self._up > 1 and samples:
            before = self._rest[-1] if self._rest else samples[0]
            self._rest = samples[-1:]
            between: list[int] = []
            for sample in samples:
                step = sample - before
                between.extend(before + step * part // self._up for part in range(1, self._up + 1))
                before = sample
            return array.array("h", between)
        return samples
