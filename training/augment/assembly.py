"""Assembly of a batch's audio from the corpus on the device, and its change of speed.

Shape legend: B samples, K utterances of a sample, N samples of audio.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from training.augment.draw import Draw
from training.data.batches import Batch

_FULL_SCALE = 32768.0
# Lengths are rounded up to a multiple of this, so that the allocator has few sizes.
_ROUND_SAMPLES = 8_000


def assemble(corpus: Tensor, batch: Batch, draw: Draw) -> Tensor:
    """Return audio [B, N] float32 at its first speed, each utterance up to 3 dB louder or softer.

    Args:
        corpus: int16 samples of all utterances, one after the other.
        batch: a batch on the same device.
        draw: random numbers for the batch's rows.
    """
    num_rows, width = batch.first_BK.shape
    size = -(-batch.longest // _ROUND_SAMPLES) * _ROUND_SAMPLES
    at = torch.arange(size, device=corpus.device)[None]
    gain_BK = 10 ** ((6.0 * draw.shares(num_rows, width) - 3.0) / 20)
    audio_BN = torch.zeros(num_rows, size, device=corpus.device)
    for column in range(width):
        within = at - batch.position_BK[:, column : column + 1]
        inside = (within >= 0) & (within < batch.length_BK[:, column : column + 1])
        index = (batch.first_BK[:, column : column + 1] + within).clamp(0, corpus.numel() - 1)
        audio_BN += torch.where(inside, corpus[index].float() * gain_BK[:, column : column + 1], 0.0)
    return audio_BN / _FULL_SCALE


def change_speed(audio_BN: Tensor, speed_B: Tensor, num_samples: int) -> Tensor:
    """Resample each row at `speed_B` times its speed by cubic interpolation, with its pitch and formants."""
    size = audio_BN.shape[1]
    place = torch.arange(num_samples, device=audio_BN.device)[None] * speed_B[:, None]
    first = place.floor().long()
    share = place - first
    padded = F.pad(audio_BN, (1, 3))
    before, left, right, after = (padded.gather(1, (first + k).clamp(max=size + 3)) for k in range(4))
    bend = 3.0 * (left - right) + after - before
    slope = right - before + share * (2.0 * before - 5.0 * left + 4.0 * right - after + share * bend)
    return (left + 0.5 * share * slope) * (place < size)
