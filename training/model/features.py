"""Log-mel features as in NeMo's `AudioToMelSpectrogramPreprocessor` (normalize NA, no dither).

Shape legend: B rows, N samples, M mel frames, F mel bins, K frequencies of the transform.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from gpu_worker.model.config import MelConfig
from training.model.centred import sequence_mask


class Featurizer(nn.Module):
    """Filter bank [1, F, K] and window, under the names that they have in a checkpoint."""

    fb: Tensor
    window: Tensor

    def __init__(self, filters_1FK: Tensor, window: Tensor) -> None:
        super().__init__()
        self.register_buffer("fb", filters_1FK.clone())
        self.register_buffer("window", window.clone())


class LogMel(nn.Module):
    """The mel front end: computes log-mel frames of samples, without gradient."""

    def __init__(self, config: MelConfig, filters_1FK: Tensor, window: Tensor) -> None:
        super().__init__()
        self.config = config
        self.featurizer = Featurizer(filters_1FK, window)

    @torch.no_grad()
    def forward(
        self, samples_BN: Tensor, num_samples_B: Tensor, warp_B: Tensor | None = None
    ) -> tuple[Tensor, Tensor]:
        """Return mel_BMF, zero past each row's end, and the frames of each row.

        Args:
            samples_BN: float32 at 16 kHz.
            num_samples_B: int64 length of each row.
            warp_B: factor by which each row's frequency axis is stretched, as by another vocal tract.
        """
        config = self.config
        emphasized = samples_BN - config.preemphasis * torch.nn.functional.pad(samples_BN, (1, 0))[:, :-1]
        emphasized = emphasized * sequence_mask(num_samples_B, samples_BN.shape[1])
        spectrum = torch.stft(
            emphasized,
            config.n_fft,
            config.hop_length,
            config.win_length,
            self.featurizer.window,
            center=True,
            pad_mode="constant",
            return_complex=True,
        )
        power_BKM = spectrum.real**2 + spectrum.imag**2
        if warp_B is not None:
            power_BKM = warp_frequencies(power_BKM, warp_B)
        mel_BMF = torch.log(self.featurizer.fb @ power_BKM + config.log_zero_guard).transpose(1, 2)
        num_frames_B = num_samples_B // config.hop_length
        return mel_BMF * sequence_mask(num_frames_B, mel_BMF.shape[1])[..., None], num_frames_B


def warp_frequencies(power_BKM: Tensor, warp_B: Tensor) -> Tensor:
    """Read frequency k of each row at k * warp; frequencies beyond the last one repeat it."""
    top = power_BKM.shape[1] - 1
    position_BK = torch.arange(top + 1, device=power_BKM.device)[None] * warp_B[:, None]
    position_BK = position_BK.clamp(max=top)
    below_BK = position_BK.floor().clamp(max=top - 1).long()
    share = (position_BK - below_BK)[..., None]

    def at(index_BK: Tensor) -> Tensor:
        return power_BKM.gather(1, index_BK[..., None].expand(-1, -1, power_BKM.shape[2]))

    return at(below_BK) * (1 - share) + at(below_BK + 1) * share
