"""Resampled audio is a function of the audio: of no message size, and of no place where a replay began."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
import soxr
from numpy.typing import NDArray

from gpu_worker.pipeline.resampling import SEGMENT_S, Resampler, replay_start

RATES = (8000, 11_025, 12_345, 22_050, 24_000, 44_100, 48_000)


def signal(rate: int, seconds: float) -> NDArray[np.float32]:
    return np.random.default_rng(rate).standard_normal(int(rate * seconds)).astype(np.float32) * np.float32(
        0.1
    )


def resampled(
    samples: NDArray[np.float32], rate: int, size: Callable[[], int], start: int = 0
) -> NDArray[np.float32]:
    resampler = Resampler(rate, start)
    parts = []
    at = start
    while at < len(samples):
        count = size()
        parts += resampler.push(samples[at : at + count])
        at += count
    parts += resampler.finish()
    return np.concatenate(parts)


@pytest.mark.parametrize("rate", RATES)
def test_message_sizes_change_nothing(rate: int) -> None:
    samples = signal(rate, 2 * SEGMENT_S + 1.3)
    chance = np.random.default_rng(0)
    whole = resampled(samples, rate, lambda: len(samples))
    assert np.array_equal(whole, resampled(samples, rate, lambda: rate // 100))
    assert np.array_equal(whole, resampled(samples, rate, lambda: int(chance.integers(1, 2 * rate))))


@pytest.mark.parametrize("rate", RATES)
def test_segments_join_to_what_soxr_gives_in_one_piece(rate: int) -> None:
    samples = signal(rate, 2 * SEGMENT_S + 1.3)
    ours = resampled(samples, rate, lambda: rate // 10)
    theirs = soxr.resample(samples, rate, 16_000, quality="HQ")
    assert abs(len(ours) - len(theirs)) <= 1
    length = min(len(ours), len(theirs))
    assert np.abs(ours[:length] - theirs[:length]).max() < 1e-5


@pytest.mark.parametrize("rate", RATES)
def test_a_replay_gives_the_same_samples(rate: int) -> None:
    samples = signal(rate, 2 * SEGMENT_S + 3.3)
    whole = resampled(samples, rate, lambda: rate // 10)
    chance = np.random.default_rng(1)
    for decoded in (0, 5 * 16_000, SEGMENT_S * 16_000, 15 * 16_000 + 7, 22 * 16_000):
        start = replay_start(rate, decoded)
        assert start <= decoded * rate // 16_000
        first = Resampler(rate, start).first_output
        replay = resampled(samples, rate, lambda: int(chance.integers(1, rate)), start)
        assert np.array_equal(replay[decoded - first :], whole[decoded:])


@pytest.mark.parametrize("rate", RATES)
def test_a_replay_needs_a_bounded_past(rate: int) -> None:
    for decoded in range(0, 100 * 16_000, 7777):
        past_s = decoded / 16_000 - replay_start(rate, decoded) / rate
        assert past_s <= SEGMENT_S + 1.01


def test_at_the_engines_rate_nothing_is_resampled() -> None:
    assert replay_start(16_000, 123_457) == 123_457
