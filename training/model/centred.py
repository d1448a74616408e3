"""Linear maps whose weight gradient is computed from inputs minus their mean over the batch.

The inputs of a layer have a mean that is the same for every recording. Adam turns the smallest coherent
gradient along it into a full step, each layer then adds a constant vector, and the norm after each layer
shrinks what depends on the audio by the same factor again and again: the encoder collapses to a constant and
the transducer to a language model. Without a gradient of the mean's product no step can go along it. The
forward pass is unchanged.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn


def batch_mean(x: Tensor, dims: tuple[int, ...]) -> Tensor:
    """Return the mean over `dims`, kept as axes of length 1, without gradient and computed in float32."""
    return x.detach().float().mean(dims, keepdim=True).to(x.dtype)


def centred_linear(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """Compute `F.linear` over the last axis; the gradient of `weight` is from centred inputs alone."""
    mean = batch_mean(x, tuple(range(x.dim() - 1)))
    return F.linear(x - mean, weight, bias) + F.linear(mean, weight).detach()


class CentredLinear(nn.Linear):
    """A linear layer whose weight gradient is computed from centred inputs."""

    def forward(self, x: Tensor) -> Tensor:
        if not self.training:
            return super().forward(x)
        return centred_linear(x, self.weight, self.bias)


class CentredPointwise1d(nn.Conv1d):
    """A convolution of one tap over [B, T, D], with NeMo's weight shape [D', D, 1]."""

    def __init__(self, width_in: int, width_out: int) -> None:
        super().__init__(width_in, width_out, 1, bias=False)

    def forward(self, x_BTD: Tensor) -> Tensor:
        weight = self.weight[..., 0]
        return centred_linear(x_BTD, weight, None) if self.training else F.linear(x_BTD, weight)


class CentredPointwise2d(nn.Conv2d):
    """A 1 x 1 convolution of [B, C, T, F]; the mean is taken for each channel."""

    def __init__(self, channels: int) -> None:
        super().__init__(channels, channels, 1)

    def forward(self, x: Tensor) -> Tensor:
        if not self.training:
            return super().forward(x)
        mean = batch_mean(x, (0, 2, 3))
        return super().forward(x - mean) + F.conv2d(mean, self.weight).detach()


class CausalConv2d(nn.Conv2d):
    """A depthwise 3 x 3 convolution of stride 2, with two zeros in front and one behind on both axes.

    With one input channel it is the first layer, over log-mel with a mean of about -9, so its gradient is
    centred, too. The convolution of the mean is not constant, because of the zeros around it.
    """

    _PADDING = (2, 1, 2, 1)

    def __init__(self, channels_in: int, channels_out: int) -> None:
        super().__init__(channels_in, channels_out, 3, stride=2, groups=channels_in)

    def forward(self, x: Tensor) -> Tensor:
        if not (self.training and self.in_channels == 1):
            return super().forward(F.pad(x, self._PADDING))
        mean = batch_mean(x, (0, 1, 2, 3))
        level = F.pad(mean.expand(1, 1, *x.shape[2:]), self._PADDING)
        constant = F.conv2d(level, self.weight, None, 2).detach()
        return super().forward(F.pad(x - mean, self._PADDING)) + constant


def sequence_mask(lengths_B: Tensor, size: int) -> Tensor:
    """Return bool [B, size], true for positions inside each row's length."""
    return torch.arange(size, device=lengths_B.device)[None] < lengths_B[:, None]
