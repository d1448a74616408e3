"""Resampling from 24 kHz to 16 kHz on the device, by a windowed sinc in two phases."""

from __future__ import annotations

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

_HALF_WIDTH = 36
# Share of the lower rate's band that passes; the rest is the slope.
_PASS_BAND = 0.96


class ToSixteen:
    """Resamples batches by 2/3."""

    def __init__(self, device: torch.device) -> None:
        taps = np.arange(-_HALF_WIDTH, _HALF_WIDTH + 1)
        phases = []
        for phase in (0.0, 1.5):
            time = taps - phase
            window = np.where(abs(time) < _HALF_WIDTH, np.cos(np.pi * time / 2 / _HALF_WIDTH) ** 2, 0)
            band = _PASS_BAND * 2 / 3
            phases.append(band * np.sinc(band * time) * window)
        self._kernel = torch.tensor(np.stack(phases), dtype=torch.float32, device=device)[:, None]

    def __call__(self, audio_BN: Tensor) -> Tensor:
        """Resample from 24 kHz to 16 kHz; sample k of the output lies at 1.5 k of the input."""
        padded = F.pad(audio_BN.float()[:, None], (_HALF_WIDTH, _HALF_WIDTH + 3))
        pairs = F.conv1d(padded, self._kernel, stride=3)
        return pairs.transpose(1, 2).reshape(audio_BN.shape[0], -1)
