"""Streaming log-mel spectrum, equal to the offline spectrum at every frame, borders included.

Mel frame k is centred on sample ``hop * k`` and depends on ``win_length`` samples around it and one more in
front for the preemphasis. An encoder frame t needs the mel frames up to 8 t, so a stream with t encoder
frames has taken exactly ``frame_samples * (t - 1) + win_length / 2`` samples. The last ``win_length - hop +
1`` of them are kept in the slot for the next frames.

Shape legend: B rows of the step, T encoder frames of a row, N = T * frame_samples new samples,
Z samples of the kept tail, M = 8 T mel frames, F mel bins.

Source: NeMo `nemo/collections/asr/parts/preprocessing/features.py`, `FilterbankFeatures` (normalize NA,
no dither, magnitude power 2).
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
import torch.nn.functional as F
from torch import Tensor

from gpu_worker.model.config import ModelConfig


class MelFrontEnd:
    """The mel front end: computes the log-mel frames of a step's samples, always in float32."""

    def __init__(self, config: ModelConfig, weights: Mapping[str, Tensor], device: torch.device) -> None:
        mel = config.mel
        if mel.win_length % 2 or mel.win_length < mel.hop_length:
            raise ValueError(f"unsupported window of {mel.win_length} samples at a hop of {mel.hop_length}")
        self.hop = mel.hop_length
        self.win = mel.win_length
        self.n_fft = mel.n_fft
        self.n_mels = mel.n_mels
        self.preemphasis = mel.preemphasis
        self.log_zero_guard = mel.log_zero_guard
        self.factor = config.subsampling_factor
        self.frame_samples = config.frame_samples
        self.tail_samples = mel.win_length - mel.hop_length + 1
        self._window = weights["preprocessor.featurizer.window"].to(device, torch.float32)
        filter_bank = weights["preprocessor.featurizer.fb"].to(device, torch.float32)
        self._filter_bank_BinsF = filter_bank[0].t().contiguous()
        self._device = device

    def run(
        self, tail_BZ: Tensor, samples_BN: Tensor, start_B: Tensor, total_samples_B: Tensor, *, edges: bool
    ) -> tuple[Tensor, Tensor]:
        """Compute the mel frames ``8 * start - 7 .. 8 * (start + T - 1)`` of each row.

        Args:
            tail_BZ: the row's kept samples (zeros before its first sample).
            samples_BN: float32 samples that follow the tail; zeros before the stream's first sample and
                after its last.
            start_B: int64 first encoder frame of the step.
            total_samples_B: int64 length of the stream in samples, or more than any stream has while
                its end is unknown.
            edges: whether a row may hold a stream's first frame or its end; if not, no mask is applied.

        Returns:
            mel_BMF, zero outside the stream's frames, and the next tail_BZ.
        """
        num_samples = samples_BN.shape[1]
        audio = torch.cat([tail_BZ, samples_BN], dim=1)
        next_tail = audio[:, -self.tail_samples :]
        # Two roundings, as in the reference: a fused multiply-add changes the logarithm of quiet bins by
        # 2e-4.
        emphasized = audio[:, 1:] - self.preemphasis * audio[:, :-1]
        if edges:
            # The preemphasis of the silence after the last sample does not belong to the stream.
            first = self.frame_samples * (start_B - 1) + (self.hop - self.win // 2)
            index = first.unsqueeze(1) + torch.arange(emphasized.shape[1], device=self._device)
            emphasized = emphasized * (index < total_samples_B.unsqueeze(1))
        frames = emphasized.unfold(1, self.win, self.hop) * self._window
        # Centred in n_fft as in torch.stft: at another place only the rounding differs, by 6e-4 of the
        # logarithm in quiet bins.
        margin = (self.n_fft - self.win) // 2
        frames = F.pad(frames, (margin, self.n_fft - self.win - margin))
        spectrum = torch.view_as_real(torch.fft.rfft(frames))
        power = spectrum.square().sum(-1)
        mel = torch.matmul(power, self._filter_bank_BinsF).add_(self.log_zero_guard).log_()
        if edges:
            num_frames = num_samples // self.hop
            first_mel = (self.factor * (start_B - 1) + 1).unsqueeze(1)
            index = first_mel + torch.arange(num_frames, device=self._device)
            valid = (index >= 0) & (index < (total_samples_B // self.hop).unsqueeze(1))
            mel = mel * valid.unsqueeze(2)
        return mel, next_tail
