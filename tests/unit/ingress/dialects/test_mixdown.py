"""Channels become one, whatever their samples are."""

from __future__ import annotations

import struct

from common.messages import Audio, Encoding
from ingress.dialects.mixdown import mixed


def test_the_mean_of_two_and_of_three() -> None:
    assert mixed(Audio(struct.pack("<4h", 2, 4, -32768, 32767), final=True), 2) == Audio(
        struct.pack("<2h", 3, -1), final=True
    )
    assert mixed(Audio(struct.pack("<3h", 3, 6, 9)), 3) == Audio(struct.pack("<h", 6))
    assert mixed(Audio(b""), 2) == Audio(b"")


def test_floats_stay_floats() -> None:
    assert mixed(Audio(struct.pack("<4f", 0.5, -0.5, 1.0, 0.0), Encoding.F32), 2) == Audio(
        struct.pack("<2f", 0.0, 0.5), Encoding.F32
    )
