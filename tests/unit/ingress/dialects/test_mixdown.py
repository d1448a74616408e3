"""Channels become one, whatever their samples are."""

from __future__ import annotations

import struct

import pytest

from common.messages import Audio, Encoding
from gpu_worker.pipeline.g711 import ALAW, MULAW
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


@pytest.mark.parametrize(("encoding", "table"), [(Encoding.MULAW, MULAW), (Encoding.ALAW, ALAW)])
def test_g711_is_decoded_as_the_worker_does(encoding: Encoding, table: list[int]) -> None:
    doubled = bytes(byte for value in range(256) for byte in (value, value))
    assert mixed(Audio(doubled, encoding), 2) == Audio(struct.pack("<256h", *(int(one) for one in table)))
