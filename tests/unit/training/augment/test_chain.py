"""Augmentation changes what it says it changes, by amounts within its ranges, and repeats by seed."""

from __future__ import annotations

import random

import numpy as np
import pytest
import torch
from torch import Tensor

from tests.oracle.models import ALL_RECORDINGS, speech, tiny
from training.augment.chain import Masking, Warping, augment, features, mask_features
from training.augment.channel import Spectrum, active_level, add_noise, mu_law, room_response
from training.augment.draw import Draw
from training.data.batches import make_batch
from training.data.composition import End, Piece, Sample
from training.data.utterances import Spoken, gathered
from training.model.features import LogMel, warp_frequencies

RATE = 16_000


def draw(num_rows: int, seed: int = 0) -> Draw:
    return Draw(torch.Generator().manual_seed(seed), num_rows, random.Random(seed))


def clips(num_rows: int, size: int = 24_000) -> Tensor:
    return torch.stack([torch.tensor(speech(ALL_RECORDINGS[row % 4])[:size]) for row in range(num_rows)])


def test_draws_have_their_shares_and_ranges() -> None:
    one = draw(20_000)
    assert 0.28 < float(one.chance(0.3).float().mean()) < 0.32
    drawn = one.uniform(-2, 3)
    assert -2 <= float(drawn.min()) < -1.9 < 2.9 < float(drawn.max()) <= 3
    curve = draw(500).curve(64, 4.0)
    assert curve.shape == (500, 64)
    assert 3.0 < float(curve.std()) < 4.5
    assert float((curve[:, 1:] - curve[:, :-1]).abs().mean()) < 1.0


def test_rows_of_digital_silence_stay_quiet_and_everything_is_finite() -> None:
    audio = clips(8)
    audio[3] = 0.0
    lengths = torch.tensor([24_000, 20_000, 16_000, 24_000, 8_000, 24_000, 100, 24_000])
    out = augment(audio, lengths, draw(8), 1.0)
    assert torch.isfinite(out).all()
    assert float(out.abs().max()) < 1.5
    for row, length in enumerate(lengths.tolist()):
        assert not out[row, length:].any()
        assert out[row, : min(length, 100)].any()


def test_the_same_seed_augments_alike_and_another_differs() -> None:
    audio, lengths = clips(8), torch.full((8,), 24_000)
    first, again, other = (augment(audio, lengths, draw(8, seed), 1.0) for seed in (1, 1, 2))
    assert torch.equal(first, again)
    assert float((first - other).abs().max()) > 1e-3


def test_noise_keeps_its_distance() -> None:
    audio = clips(64)
    level = active_level(audio)
    spectrum = Spectrum(audio.shape[1], audio.device)
    noise = add_noise(audio, level, spectrum, draw(64), 1.0) - audio
    ratio_db = 20 * torch.log10(level[:, 0] / noise.square().mean(1).sqrt())
    assert -4 < float(ratio_db.min()) < 12
    assert 40 < float(ratio_db.max()) < 66
    assert 0.4 < float((ratio_db < 31).float().mean()) < 0.9


def test_rooms_begin_with_the_direct_sound_and_fade() -> None:
    response = room_response(draw(64))
    assert (response[:, 0] > 0.5).all()
    energy = response[:, 1:].square()
    assert (energy[:, :3_000].sum(1) > energy[:, 3_400:].sum(1)).all()
    ratio_db = 10 * torch.log10(1.0 / energy.sum(1))
    assert -6 < float(ratio_db.min()) < float(ratio_db.max()) < 18


def test_filters_do_not_wrap_round() -> None:
    """An impulse at the end of a row must not echo at its begin."""
    audio = torch.zeros(1, 9_600)
    audio[0, -10] = 1.0
    spectrum = Spectrum(9_600, audio.device)
    heard = spectrum.back(spectrum.of(audio) * spectrum.of(room_response(draw(1))))
    assert float(heard[0, :9_000].abs().max()) < 1e-4
    assert float(heard[0, -10]) > 0.5


def test_mu_law_has_its_steps_and_keeps_the_signal() -> None:
    audio = torch.linspace(-1, 1, 20_001)
    coded = mu_law(audio)
    assert 250 <= len(torch.unique(coded)) <= 255
    torch.testing.assert_close(coded, audio, atol=0.025, rtol=0)


def test_masks_hide_no_more_than_they_may() -> None:
    mel = torch.randn(16, 400, 128) - 9.0
    lengths = torch.full((16,), 400)
    lengths[0] = 50
    mel[0, 50:] = 0.0
    masking = Masking()
    out = mask_features(mel, lengths, draw(16), masking)
    changed = out != mel
    assert not changed[0, 50:].any()
    bands = changed.all(1).sum(1)
    gaps = changed.all(2).sum(1)
    assert 0 < int(bands[1:].max()) <= masking.num_bands * masking.max_bins
    assert 0 < int(gaps.max()) <= masking.num_gaps * 0.045 * 400
    hidden = out[1][changed[1]]
    torch.testing.assert_close(hidden, torch.full_like(hidden, float(mel[1].mean())))


def test_warping_moves_a_tone() -> None:
    power = torch.zeros(2, 257, 1)
    power[:, 100] = 1.0
    warped = warp_frequencies(power, torch.tensor([1.0, 1.25]))
    assert int(warped[0].argmax()) == 100
    assert int(warped[1].argmax()) == 80


@pytest.mark.parametrize("strength", [0.0, 1.0])
def test_from_utterances_to_features(strength: float) -> None:
    loaded = tiny()
    weights = loaded.weights
    log_mel = LogMel(
        loaded.config.mel, weights["preprocessor.featurizer.fb"], weights["preprocessor.featurizer.window"]
    )
    spoken = [Spoken((speech(name)[:16_000] * 32_767).astype(np.int16), "x", (1,)) for name in ALL_RECORDINGS]
    utterances = gathered(spoken, lambda text: [1])
    samples = [
        Sample((Piece(k, 1_600, 0),), 20_000 + 1_000 * k, (1, 2), (1,), (End(1, 17_600),), 1.0)
        for k in range(4)
    ]
    batch = make_batch(samples, utterances, 224, 3)
    corpus = torch.from_numpy(utterances.samples)
    given = (
        corpus,
        batch,
        log_mel,
        torch.Generator().manual_seed(3),
        random.Random(3),
        strength,
        Warping(),
        Masking(),
    )
    mel, num_mels = features(*given)
    assert mel.shape == (4, 224, 128)
    assert num_mels.tolist() == [125, 131, 137, 143]
    assert torch.isfinite(mel).all()
    assert not mel[0, 125:].any()
    # Speech stands out of what is in front of it.
    assert float(mel[:, 30:90].mean() - mel[:, :8].mean()) > 0.5
