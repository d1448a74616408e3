"""Causal depthwise-striding subsampling by 8 over whole recordings (NeMo `ConvSubsampling`, dw_striding)."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from gpu_worker.model.config import ModelConfig
from training.model.centred import CausalConv2d, CentredLinear, CentredPointwise2d, sequence_mask


def halved(length: Tensor) -> Tensor:
    """Return the number of frames after a convolution of stride 2 with two zeros in front and one behind."""
    return length // 2 + 1


class Subsampling(nn.Module):
    """The subsampling of mel frames to encoder frames. Frames past a row's end are zeros at every level."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        channels = config.subsampling_channels
        layers: list[nn.Module] = [CausalConv2d(1, channels), nn.ReLU()]
        for _ in range(config.subsampling_factor.bit_length() - 2):
            layers += [CausalConv2d(channels, channels), CentredPointwise2d(channels), nn.ReLU()]
        self.conv = nn.ModuleList(layers)
        self.out = CentredLinear(channels * config.subsampled_mels, config.d_model)

    def forward(self, mel_BMF: Tensor, num_mels_B: Tensor) -> tuple[Tensor, Tensor]:
        """Return x_BTD and the number of encoder frames of each row."""
        x, length_B = _masked(mel_BMF[:, None], num_mels_B), num_mels_B
        for layer in self.conv:
            x = layer(x)
            if isinstance(layer, CausalConv2d):
                length_B = halved(length_B)
                # Depthwise convolutions on CUDA are several times faster in this layout.
                x = x.contiguous(memory_format=torch.channels_last) if x.is_cuda else x
            elif isinstance(layer, nn.ReLU):
                x = _masked(x, length_B)
        out: Tensor = self.out(x.transpose(1, 2).flatten(2))
        return out, length_B


def _masked(x_BCTF: Tensor, length_B: Tensor) -> Tensor:
    return x_BCTF * sequence_mask(length_B, x_BCTF.shape[2])[:, None, :, None].to(x_BCTF.dtype)


def dropout(x: Tensor, share: float, module: nn.Module) -> Tensor:
    """Apply dropout if `module` is in training mode."""
    return F.dropout(x, share, module.training)
