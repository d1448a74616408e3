"""Conversion of mu-law and A-law to linear samples, by tables of 256 values (ITU-T G.711)."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

import numpy as np

if TYPE_CHECKING:
    from numpy.typing import NDArray


def _mulaw() -> NDArray[np.int16]:
    code = ~np.arange(256, dtype=np.uint8)  # all bits are inverted on the line
    exponent = (code >> 4) & 7
    magnitude = ((((code & 15).astype(np.int32) << 3) + 132) << exponent) - 132
    return np.where(code & 0x80, -magnitude, magnitude).astype(np.int16)


def _alaw() -> NDArray[np.int16]:
    code = np.arange(256, dtype=np.uint8) ^ 0x55  # every other bit is inverted on the line
    exponent = (code >> 4) & 7
    mantissa = ((code & 15).astype(np.int32) << 4) + 8
    magnitude = np.where(exponent == 0, mantissa, (mantissa + 256) << np.maximum(exponent, 1) - 1)
    return np.where(code & 0x80, magnitude, -magnitude).astype(np.int16)


MULAW: Final = _mulaw()
"""pcm16 of each byte of mu-law; full scale is 32124."""
ALAW: Final = _alaw()
"""pcm16 of each byte of A-law; full scale is 32256."""
