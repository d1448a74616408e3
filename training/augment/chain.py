"""The whole augmentation of a batch in order, from utterances in the corpus to log-mel frames."""

from __future__ import annotations

import random
from dataclasses import dataclass

import torch
from torch import Tensor

from training.augment.assembly import assemble, change_speed
from training.augment.channel import Spectrum, active_level, add_babble, add_noise, add_room, pass_channel
from training.augment.draw import Draw
from training.data.batches import HOP, Batch
from training.model.centred import sequence_mask
from training.model.features import LogMel


@dataclass(frozen=True, slots=True)
class Masking:
    """SpecAugment (Park et al. 2019): bands of mel bins and stretches of time set to the mean."""

    num_bands: int = 2
    max_bins: int = 22
    num_gaps: int = 6
    max_gap_share: float = 0.045
    max_gap_frames: int = 30


@dataclass(frozen=True, slots=True)
class Warping:
    """A stretched frequency axis, which imitates another vocal tract: the share of rows, and the range."""

    share: float = 0.5
    lowest: float = 0.84
    highest: float = 1.19


def augment(audio_BN: Tensor, num_samples_B: Tensor, draw: Draw, strength: float) -> Tensor:
    """Add room, noise, other voices and channel; samples past each row's end are zeros.

    Args:
        audio_BN: clean speech, float32 at 16 kHz.
        num_samples_B: length of each row.
        draw: random numbers for these rows.
        strength: 0 to 1, a factor of the share of rows that are changed. At 0, faint noise, band and level
        still apply.
    """
    spectrum = Spectrum(audio_BN.shape[1], audio_BN.device)
    audio = add_room(audio_BN, spectrum, draw, strength)
    level = active_level(audio)
    audio = add_noise(audio, level, spectrum, draw, strength)
    audio = add_babble(audio, audio_BN, level, draw, strength)
    audio = pass_channel(audio, spectrum, draw, strength)
    return audio * sequence_mask(num_samples_B, audio.shape[1])


def mask_features(mel_BMF: Tensor, num_mels_B: Tensor, draw: Draw, masking: Masking) -> Tensor:
    """Set bands and gaps of each row to the row's mean; frames past its end stay zero."""
    num_rows, num_frames, num_bins = mel_BMF.shape
    frames = num_mels_B[:, None].float()
    time = torch.arange(num_frames, device=mel_BMF.device)[None]
    bins = torch.arange(num_bins, device=mel_BMF.device)[None]
    hidden_bins = torch.zeros(num_rows, num_bins, dtype=torch.bool, device=mel_BMF.device)
    hidden_time = torch.zeros(num_rows, num_frames, dtype=torch.bool, device=mel_BMF.device)
    for _ in range(masking.num_bands):
        width = (draw.uniform(0, 1) * masking.max_bins).long()
        first = (draw.uniform(0, 1) * (num_bins - width)).long()
        hidden_bins |= (bins >= first) & (bins < first + width)
    for _ in range(masking.num_gaps):
        longest = (frames * masking.max_gap_share).clamp(max=masking.max_gap_frames)
        width = (draw.uniform(0, 1) * longest).long()
        first = (draw.uniform(0, 1) * (frames - width).clamp(min=1)).long()
        hidden_time |= (time >= first) & (time < first + width)
    mean = mel_BMF.sum((1, 2)) / (num_mels_B * num_bins).clamp(min=1)
    hidden = hidden_time[:, :, None] | hidden_bins[:, None]
    masked = torch.where(hidden, mean[:, None, None], mel_BMF)
    return masked * sequence_mask(num_mels_B, num_frames)[..., None]


@torch.no_grad()
def features(
    corpus: Tensor,
    batch: Batch,
    log_mel: LogMel,
    generator: torch.Generator,
    host: random.Random,
    strength: float,
    warping: Warping,
    masking: Masking,
) -> tuple[Tensor, Tensor]:
    """Return log-mel [B, M, F] of a batch in its bucket's length, and the number of frames of each row.

    Args:
        corpus: int16 samples of all utterances, on the device.
        batch: a batch on the device.
        log_mel: the front end.
        generator, host: sources of all random numbers here; the first is on the device.
        strength: strength of the augmentation, 0 to 1; features are masked above one half.
        warping, masking: changes of the features.
    """
    draw = Draw(generator, batch.num_samples_B.shape[0], host)
    num_samples = batch.num_mels * HOP
    audio = change_speed(assemble(corpus, batch, draw), batch.speed_B, num_samples)
    audio = augment(audio, batch.num_samples_B, draw, strength)
    factor = torch.where(
        draw.chance(warping.share * strength), draw.uniform(warping.lowest, warping.highest), 1.0
    )
    mel, num_mels = log_mel(audio, batch.num_samples_B, factor[:, 0])
    mel = mel[:, : batch.num_mels]
    if strength > 0.5:
        mel = mask_features(mel, num_mels, draw, masking)
    return mel, num_mels
