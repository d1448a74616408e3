"""Mixing and rates: what a server is sent of many channels and of rates that it does not take."""

from __future__ import annotations

import array
import math
import random

import pytest

from common.mixer import Mixer
from parakeet.audio.pcm import RateFit


def _tone(num: int, hertz: float = 300.0, rate: int = 16_000) -> list[int]:
    return [round(8000 * math.sin(2 * math.pi * hertz * n / rate)) for n in range(num)]


def _interleaved(*channels: list[int]) -> array.array[int]:
    return array.array("h", [sample for frame in zip(*channels, strict=True) for sample in frame])


def test_channels_are_averaged() -> None:
    assert Mixer(2).mix(array.array("h", [10, 20, -4, 4, 32767, 32767])).tolist() == [15, 0, 32767]
    assert Mixer(3).mix(array.array("h", [3, 6, 9, -32768, -32768, -32768])).tolist() == [6, -32768]


@pytest.mark.parametrize("typecode", ["h", "f"])
def test_as_many_channels_as_a_wav_file_can_name_are_averaged(typecode: str) -> None:
    frame = [2, 4] * 32_767 + [6]  # a quiet frame, then its opposite
    samples = array.array(typecode, [*frame, *(-sample for sample in frame)])
    expected = sum(frame) / len(frame)
    assert Mixer(65_535).mix(samples).tolist() == pytest.approx([expected, -expected], abs=1.0)


@pytest.mark.parametrize("channels", [2, 3])
def test_a_channel_upside_down_does_not_silence_the_others(channels: int) -> None:
    tone = _tone(4000)
    turned = [-sample for sample in tone]
    mixed = Mixer(channels).mix(_interleaved(tone, *[turned] * (channels - 1)))
    assert max(abs(one - other) for one, other in zip(mixed, tone, strict=True)) <= 1


def test_it_stays_turned_over_through_silence_and_however_the_audio_is_cut() -> None:
    tone = [0] * 4000 + _tone(4000) + [0] * 4000 + _tone(4000, 500)
    samples = _interleaved(tone, [-sample for sample in tone])
    mixer = Mixer(2)
    mixed = [one for at in range(0, len(samples), 8000) for one in mixer.mix(samples[at : at + 8000])]
    assert max(abs(one - other) for one, other in zip(mixed, tone, strict=True)) <= 1


def test_two_speakers_on_two_channels_are_both_heard() -> None:
    made = random.Random(1)
    one, other = ([made.randrange(-9000, 9000) for _ in range(4000)] for _ in range(2))
    mixed = Mixer(2).mix(_interleaved(one, other)).tolist()
    assert mixed == [(a + b) >> 1 for a, b in zip(one, other, strict=True)]


@pytest.mark.parametrize(
    ("rate", "expected"), [(96_000, 48_000), (4000, 8000), (1000, 8000), (48_001, 24_000)]
)
def test_a_tone_keeps_its_pitch_and_the_cuts_do_not_matter(rate: int, expected: int) -> None:
    tone = array.array("h", _tone(rate, 100.0, rate))
    whole = RateFit(rate).fit(tone)
    fit = RateFit(rate)
    assert fit.rate == expected
    cut = [one for at in range(0, rate, 333) for one in fit.fit(tone[at : at + 333])]
    assert whole.tolist() == cut
    wanted = _tone(len(whole), 100.0, fit.rate)
    # Linear steps between samples of 1 kHz miss a tone of 100 Hz by a twentieth, and come a sample later.
    shift = fit.rate // rate - 1 if fit.rate > rate else 0
    pairs = list(zip(whole[shift:], wanted, strict=False))
    assert max(abs(one - other) for one, other in pairs) < 8000 * 0.06
