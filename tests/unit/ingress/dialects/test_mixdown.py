"""Channels become one, whatever their samples are and however they come."""

from __future__ import annotations

import itertools
import math
import random
import struct
from collections.abc import Sequence

import pytest

from common.messages import Audio, Encoding
from ingress.dialects.mixdown import Mixdown

_ENCODINGS = {Encoding.PCM16: "h", Encoding.F32: "f", Encoding.MULAW: "B", Encoding.ALAW: "B"}


def _packed(encoding: Encoding, *samples: float) -> bytes:
    return struct.pack(f"<{len(samples)}{_ENCODINGS[encoding]}", *samples)


def _mixed(encoding: Encoding, payload: bytes, num_channels: int, cuts: Sequence[int] = ()) -> bytes:
    """Return the mix of audio that comes in parts; cuts: where they end, in frames."""
    mixdown = Mixdown(encoding, num_channels)
    frame_bytes = encoding.sample_bytes * num_channels
    places = [0, *(cut * frame_bytes for cut in sorted(cuts)), len(payload)]
    made = [mixdown.mixed(Audio(payload[begin:end], encoding)) for begin, end in itertools.pairwise(places)]
    rest = mixdown.rest()
    made += [] if rest is None else [rest]
    assert mixdown.rest() is None
    assert {audio.encoding for audio in made} == {
        Encoding.F32 if encoding is Encoding.F32 else Encoding.PCM16
    }
    return b"".join(audio.payload for audio in made)


def test_the_mean_of_two_and_of_three() -> None:
    payload = _packed(Encoding.PCM16, 2, 4, -32768, 32767)
    assert _mixed(Encoding.PCM16, payload, 2) == _packed(Encoding.PCM16, 3, -1)
    assert _mixed(Encoding.PCM16, _packed(Encoding.PCM16, 3, 6, 9), 3) == _packed(Encoding.PCM16, 6)
    assert _mixed(Encoding.PCM16, b"", 2) == b""


def test_floats_stay_floats() -> None:
    payload = _packed(Encoding.F32, 0.5, -0.25, 0.0, 1.0)
    assert _mixed(Encoding.F32, payload, 2) == _packed(Encoding.F32, 0.125, 0.5)


def _voice(num: int) -> list[float]:
    """Return a tone that comes and goes, from -0.5 to 0.5, behind a silence."""
    return [0.0] * 500 + [
        0.5 * math.sin(0.02 * n * math.pi) * math.sin(0.0007 * n) ** 2 for n in range(num - 500)
    ]


def _antiphase(encoding: Encoding, voice: Sequence[float]) -> bytes:
    match encoding:
        case Encoding.PCM16:
            return _packed(encoding, *(sign * round(32000 * one) for one in voice for sign in (1, -1)))
        case Encoding.F32:
            return _packed(encoding, *(sign * one for one in voice for sign in (1, -1)))
        case Encoding.MULAW:  # the sign is the highest bit
            return bytes(byte ^ flip for one in voice for byte in (_mulaw(one),) for flip in (0, 0x80))
    return bytes(byte ^ flip for one in voice for byte in (_mulaw(one) ^ 0x2A,) for flip in (0, 0x80))


def _mulaw(value: float) -> int:
    """Return a byte of which only the sign and the order of sizes is that of the value."""
    return (0xFF if value >= 0 else 0x7F) - min(127, round(abs(value) * 127))


@pytest.mark.parametrize("encoding", _ENCODINGS)
def test_a_channel_upside_down_silences_nothing_however_the_audio_is_cut(encoding: Encoding) -> None:
    voice = _voice(6000)
    payload = _antiphase(encoding, voice)
    whole = _mixed(encoding, payload, 2)
    code = "f" if encoding is Encoding.F32 else "h"
    samples = struct.unpack(f"<{len(voice)}{code}", whole)
    scale = 1.0 if code == "f" else 32768.0
    assert max(abs(one) for one in samples) > 0.05 * scale
    if encoding in (Encoding.PCM16, Encoding.F32):
        assert max(abs(one / scale - other) for one, other in zip(samples, voice, strict=True)) < 0.02
    made = random.Random(7)
    for size in (1, 160, 333, 1024, 3000):
        assert _mixed(encoding, payload, 2, range(size, len(voice), size)) == whole
    for _ in range(5):
        assert _mixed(encoding, payload, 2, sorted(made.sample(range(len(voice)), 40))) == whole


def test_two_voices_are_both_heard_and_the_cuts_do_not_matter() -> None:
    made = random.Random(1)
    samples = [made.randrange(-9000, 9000) for _ in range(12_000)]
    payload = _packed(Encoding.PCM16, *samples)
    mean = _packed(Encoding.PCM16, *((a + b) >> 1 for a, b in zip(*[iter(samples)] * 2, strict=True)))
    for size in (1, 320, 6000):
        assert _mixed(Encoding.PCM16, payload, 2, range(size, 6000, size)) == mean


def test_a_short_part_before_a_finalize_decides_nothing() -> None:
    mixdown = Mixdown(Encoding.PCM16, 2)
    assert mixdown.mixed(Audio(_packed(Encoding.PCM16, 4000, -4000))).payload == b""
    assert mixdown.rest() == Audio(_packed(Encoding.PCM16, 0))
    heard = [20 * (n % 300) for n in range(4000)]
    same = _packed(Encoding.PCM16, *(one for sample in heard for one in (sample, sample)))
    assert mixdown.mixed(Audio(same)) == Audio(_packed(Encoding.PCM16, *heard))


def test_no_more_than_a_passage_is_kept() -> None:
    mixdown = Mixdown(Encoding.PCM16, 8)
    frame = _packed(Encoding.PCM16, *range(8))
    got = sum(len(mixdown.mixed(Audio(frame * 100)).payload) // 2 for _ in range(50))
    assert 5000 - 1024 < got <= 5000


def test_offsets_of_two_channels_are_no_likeness() -> None:
    made = random.Random(3)
    frames = [(9000 + made.randrange(-900, 900), -9000 + made.randrange(-900, 900)) for _ in range(3000)]
    payload = _packed(Encoding.PCM16, *itertools.chain.from_iterable(frames))
    assert _mixed(Encoding.PCM16, payload, 2) == _packed(Encoding.PCM16, *(sum(one) >> 1 for one in frames))
