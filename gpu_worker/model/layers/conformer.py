"""Conformer layers with causal convolution, over rows of frames with cached left context.

Every residual branch ends in a matrix product that is added to the residual stream in place. The factors 1/2
of the two feed-forward branches are folded into their weights.

Shape legend: B rows, T frames of a row, D model width, K taps of the depthwise convolution, L layers.

Source: Gulati et al. 2020 as in NeMo's `ConformerLayer` and `ConformerConvolution` (layer norm, causal).
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
import torch.nn.functional as F
from torch import Tensor

from gpu_worker.model.config import ModelConfig
from gpu_worker.model.layers.attention import Attention, AttentionStep, PagedAttention
from gpu_worker.model.layers.product import Product

# Up to this many frames, each frame is one product and one sum over its taps; with more, each tap is one
# operation.
_MAX_FRAMES_BY_FRAME = 3


class LayerNorm:
    """Layer norm over the last axis, with NeMo's epsilon."""

    def __init__(self, weights: Mapping[str, Tensor], name: str) -> None:
        self._weight = weights[f"{name}.weight"]
        self._bias = weights[f"{name}.bias"]

    def __call__(self, x: Tensor) -> Tensor:
        return F.layer_norm(x, self._weight.shape, self._weight, self._bias)


class FeedForward:
    """A feed-forward branch at half weight: linear, SiLU, linear."""

    def __init__(self, config: ModelConfig, weights: Mapping[str, Tensor], name: str) -> None:
        bias = weights[f"{name}.linear1.bias"] if config.use_bias else None
        self._in = Product(weights[f"{name}.linear1.weight"], bias)
        self._half_out = Product(
            weights[f"{name}.linear2.weight"],
            weights[f"{name}.linear2.bias"] if config.use_bias else None,
            scale=0.5,
        )

    def add_to(self, x_RowsD: Tensor, normed: Tensor) -> None:
        """Add half the branch's output to the residual stream in place."""
        self._half_out.add_to(x_RowsD, F.silu(self._in(normed), inplace=True))


class Convolution:
    """Pointwise, GLU, causal depthwise, layer norm, SiLU, pointwise."""

    def __init__(self, config: ModelConfig, weights: Mapping[str, Tensor], name: str) -> None:
        def bias(part: str) -> Tensor | None:
            return weights[f"{name}.{part}.bias"] if config.use_bias else None

        self._in = Product(weights[f"{name}.pointwise_conv1.weight"].squeeze(2), bias("pointwise_conv1"))
        self._taps_KD = weights[f"{name}.depthwise_conv.weight"].squeeze(1).t().contiguous()
        self._depthwise_bias = bias("depthwise_conv")
        self._norm = LayerNorm(weights, f"{name}.batch_norm")
        self._out = Product(weights[f"{name}.pointwise_conv2.weight"].squeeze(2), bias("pointwise_conv2"))
        self._num_taps = config.conv_kernel

    def add_to(self, x_RowsD: Tensor, normed: Tensor, cached_BKD: Tensor) -> None:
        """Add the branch's output to the residual stream and update the cache, both in place.

        Args:
            x_RowsD: residual stream, [B * T, D], changed.
            normed: layer norm of `x_RowsD`.
            cached_BKD: the K - 1 frames before the step's first frame; afterwards the K - 1 frames before the
            next step.
        """
        num_rows, _, width = cached_BKD.shape
        gated = F.glu(self._in(normed), dim=-1).view(num_rows, -1, width)
        num_frames = gated.shape[1]
        window = torch.cat([cached_BKD, gated], dim=1)
        cached_BKD.copy_(window[:, num_frames:])
        mixed = self._depthwise(window, num_frames).view(-1, width)
        self._out.add_to(x_RowsD, F.silu(self._norm(mixed), inplace=True))

    def _depthwise(self, window: Tensor, num_frames: int) -> Tensor:
        taps, count = self._taps_KD, self._num_taps
        if num_frames <= _MAX_FRAMES_BY_FRAME:
            out = (window.unfold(1, count, 1).transpose(2, 3) * taps).sum(2)
        else:
            out = window[:, :num_frames] * taps[0]
            for tap in range(1, count):
                out.addcmul_(window[:, tap : tap + num_frames], taps[tap])
        return out if self._depthwise_bias is None else out + self._depthwise_bias


class ConformerLayer:
    """Half feed-forward, attention, convolution, half feed-forward, layer norm."""

    def __init__(
        self,
        config: ModelConfig,
        weights: Mapping[str, Tensor],
        index: int,
        context: tuple[int, int],
        kernel: PagedAttention,
    ) -> None:
        prefix = f"encoder.layers.{index}"
        self._norm_in = LayerNorm(weights, f"{prefix}.norm_feed_forward1")
        self._feed_forward_in = FeedForward(config, weights, f"{prefix}.feed_forward1")
        self._norm_attention = LayerNorm(weights, f"{prefix}.norm_self_att")
        self._attention = Attention(config, weights, f"{prefix}.self_attn", context, kernel)
        self._norm_conv = LayerNorm(weights, f"{prefix}.norm_conv")
        self._conv = Convolution(config, weights, f"{prefix}.conv")
        self._norm_feed_forward_out = LayerNorm(weights, f"{prefix}.norm_feed_forward2")
        self._feed_forward_out = FeedForward(config, weights, f"{prefix}.feed_forward2")
        self._norm_out = LayerNorm(weights, f"{prefix}.norm_out")

    def run(
        self, x_RowsD: Tensor, keys: Tensor, values: Tensor, conv_BKD: Tensor, step: AttentionStep
    ) -> Tensor:
        """Run one layer; `x_RowsD`, the pages and the convolution's cache are changed in place."""
        self._feed_forward_in.add_to(x_RowsD, self._norm_in(x_RowsD))
        self._attention.add_to(x_RowsD, self._norm_attention(x_RowsD), keys, values, step)
        self._conv.add_to(x_RowsD, self._norm_conv(x_RowsD), conv_BKD)
        self._feed_forward_out.add_to(x_RowsD, self._norm_feed_forward_out(x_RowsD))
        return self._norm_out(x_RowsD)


class Encoder:
    """All conformer layers."""

    def __init__(
        self,
        config: ModelConfig,
        weights: Mapping[str, Tensor],
        context: tuple[int, int],
        kernel: PagedAttention,
    ) -> None:
        self.layers = tuple(
            ConformerLayer(config, weights, index, context, kernel) for index in range(config.num_layers)
        )
        self._scale = config.d_model**0.5 if config.xscaling else 1.0

    def run(
        self, x_BTD: Tensor, keys_LNWHE: Tensor, values_LNWHE: Tensor, conv_LBKD: Tensor, step: AttentionStep
    ) -> Tensor:
        """Compute the encoder frames [B, T, D]; pages and `conv_LBKD` are changed in place."""
        x = x_BTD.reshape(-1, x_BTD.shape[2]) * self._scale
        for index, layer in enumerate(self.layers):
            x = layer.run(x, keys_LNWHE[index], values_LNWHE[index], conv_LBKD[index], step)
        return x.view(x_BTD.shape)
