"""Causal depthwise-striding subsampling by 8, streaming over cached activations.

Three 3x3 convolutions of stride 2, each with two zeros in front and one behind on both axes.  Output frame j
of a convolution needs input frames 2 j - 2, 2 j - 1 and 2 j. So a stream with all frames up to 2 j keeps a
single input frame per convolution: one of the mel, and one of each of the two activations after it. Frames
before the stream's first and after its last are zeros at *every* level, as in the offline pass, and not the
convolution's output for zeros below.

Activations are channels-last, [rows, frames, bins, channels]: a depthwise convolution is a sum of
nine shifted products and a pointwise one a matrix product, without any padding or copying.

Shape legend: B rows, T encoder frames, F mel bins, G bins of a level, C channels, D model width.

Source: NeMo `nemo/collections/asr/parts/submodules/subsampling.py`, `ConvSubsampling` (dw_striding,
is_causal) and `MaskedConvSequential`.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from gpu_worker.model.config import ModelConfig


@dataclass(frozen=True, slots=True)
class SubsamplingCache:
    """The last input frame of each convolution: mel_BF, then [B, G, C] for each later one."""

    mel_BF: Tensor
    levels_BGC: tuple[Tensor, ...]


class _Level:
    """A depthwise 3x3 convolution of stride 2 and the pointwise one after it."""

    def __init__(self, weights: Mapping[str, Tensor], index: int) -> None:
        prefix = "encoder.pre_encode.conv"
        depthwise = weights[f"{prefix}.{index}.weight"]
        channels = depthwise.shape[0]
        self.taps_9C = depthwise.reshape(channels, 9).t().contiguous()
        self.bias_C = weights[f"{prefix}.{index}.bias"]
        self.pointwise_CC = weights[f"{prefix}.{index + 1}.weight"].reshape(channels, channels).t()
        self.pointwise_bias_C = weights[f"{prefix}.{index + 1}.bias"]

    def run(self, cached_BGC: Tensor, x_BTGC: Tensor) -> Tensor:
        """Convolve [B, 2n, G, C], with one cached frame before it, to [B, n, G // 2 + 1, C]."""
        num_rows, num_frames, num_bins, channels = x_BTGC.shape
        outputs = num_frames // 2
        bins = num_bins // 2 + 1
        out = self.bias_C.expand(num_rows, outputs, bins, channels).clone()
        for freq_tap in range(3):
            # Input bin 2 f - 2 + tap: the two zero bins in front and the one behind are left out.
            first = (3 - freq_tap) // 2
            last = min(bins - 1, (num_bins + 1 - freq_tap) // 2)
            source = slice(2 * first - 2 + freq_tap, 2 * last - 1 + freq_tap, 2)
            target = out[:, :, first : last + 1]
            target[:, 0].addcmul_(cached_BGC[:, source], self.taps_9C[freq_tap])
            target[:, 1:].addcmul_(x_BTGC[:, 1:-1:2, source], self.taps_9C[freq_tap])
            target.addcmul_(x_BTGC[:, 0::2, source], self.taps_9C[3 + freq_tap])
            target.addcmul_(x_BTGC[:, 1::2, source], self.taps_9C[6 + freq_tap])
        mixed = torch.addmm(self.pointwise_bias_C, out.view(-1, channels), self.pointwise_CC)
        return mixed.relu_().view(num_rows, outputs, bins, channels)


class Subsampling:
    """The subsampling: computes encoder frames of mel frames."""

    def __init__(self, config: ModelConfig, weights: Mapping[str, Tensor]) -> None:
        prefix = "encoder.pre_encode"
        first = weights[f"{prefix}.conv.0.weight"]
        self.channels = first.shape[0]
        self.n_mels = config.mel.n_mels
        self.factor = config.subsampling_factor
        self.dtype = first.dtype
        self._device = first.device
        self._first_9C = first.reshape(self.channels, 9).t().contiguous()
        self._first_bias_C = weights[f"{prefix}.conv.0.bias"]
        num_levels = config.subsampling_factor.bit_length() - 2
        self._levels = tuple(_Level(weights, 3 * level + 2) for level in range(num_levels))
        # NeMo flattens [channels, bins]; here the layout of a frame is [bins, channels].
        out = weights[f"{prefix}.out.weight"]
        by_channel = out.view(config.d_model, self.channels, config.subsampled_mels)
        self._out_KD = by_channel.transpose(1, 2).reshape(config.d_model, -1).t()
        self._out_bias_D = weights[f"{prefix}.out.bias"]

    @property
    def level_bins(self) -> tuple[int, ...]:
        """Frequency bins of the activations that are cached after the mel."""
        bins, widths = self.n_mels, []
        for _ in self._levels:
            bins = bins // 2 + 1
            widths.append(bins)
        return tuple(widths)

    def run(
        self,
        mel_BMF: Tensor,
        cache: SubsamplingCache,
        start_B: Tensor,
        total_mels_B: Tensor,
        *,
        edges: bool,
    ) -> tuple[Tensor, SubsamplingCache]:
        """Compute encoder frames ``start .. start + T - 1`` from their 8 T mel frames.

        Args:
            mel_BMF: frames ``8 * start - 7 .. 8 * (start + T - 1)``, zero outside the stream.
            cache: frames that precede the step at each level.
            start_B: int64 first encoder frame.
            total_mels_B: int64 number of mel frames of the whole stream, or more than any stream has while
            its end is unknown.
            edges: whether a row may hold a stream's first frame or its end.

        Returns:
            x_BTD before any scaling, and the next cache.
        """
        mel = mel_BMF.to(self.dtype)
        num_rows, num_mels, _ = mel.shape
        next_mel = mel[:, -1]
        x = self._first(torch.cat([cache.mel_BF.to(self.dtype).unsqueeze(1), mel], dim=1))
        factor, total_B = self.factor // 2, total_mels_B // 2 + 1
        next_levels: list[Tensor] = []
        for level, cached in zip(self._levels, cache.levels_BGC, strict=True):
            if edges:
                index = factor * (start_B - 1).unsqueeze(1) + 1
                index = index + torch.arange(x.shape[1], device=self._device)
                valid = (index >= 0) & (index < total_B.unsqueeze(1))
                x = x * valid.view(num_rows, -1, 1, 1)
            next_levels.append(x[:, -1])
            x = level.run(cached, x)
            factor, total_B = factor // 2, total_B // 2 + 1
        num_frames = num_mels // self.factor
        flat = x.view(num_rows * num_frames, -1)
        out = torch.addmm(self._out_bias_D, flat, self._out_KD).view(num_rows, num_frames, -1)
        return out, SubsamplingCache(next_mel, tuple(next_levels))

    def _first(self, mel_BMF: Tensor) -> Tensor:
        """Run the only full convolution, of one channel: 3x3 patches, then a matrix product."""
        padded = torch.nn.functional.pad(mel_BMF, (2, 1))
        patches = padded.unfold(1, 3, 2).unfold(2, 3, 2)
        num_rows, num_frames, num_bins, _, _ = patches.shape
        x = torch.addmm(self._first_bias_C, patches.reshape(-1, 9), self._first_9C)
        return x.relu_().view(num_rows, num_frames, num_bins, self.channels)
