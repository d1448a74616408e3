"""G.711 means the same in the worker and where an ingress mixes channels."""

from __future__ import annotations

import struct

import pytest

from common.messages import Audio, Encoding
from gpu_worker.pipeline.g711 import ALAW, MULAW
from ingress.dialects.mixdown import Mixdown


@pytest.mark.parametrize(("encoding", "table"), [(Encoding.MULAW, MULAW), (Encoding.ALAW, ALAW)])
def test_g711_is_mixed_as_the_worker_decodes_it(encoding: Encoding, table: list[int]) -> None:
    doubled = bytes(byte for value in range(256) for byte in (value, value))
    mixdown = Mixdown(encoding, 2)
    assert mixdown.mixed(Audio(doubled, encoding)) == Audio(b"")
    assert mixdown.rest() == Audio(struct.pack("<256h", *(int(one) for one in table)))
