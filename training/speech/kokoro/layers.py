"""Building blocks of Kokoro over padded batches: nothing past a row's end reaches what lies before it.

Shape legend: B rows, C channels, T frames, S width of a style.

Source: Kokoro-82M (hexgrad, Apache-2.0), an iSTFTNet variant of StyleTTS 2 (Li et al. 2023).
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

STYLE_WIDTH = 128


class Span:
    """The valid frames of each row of a padded batch."""

    def __init__(self, lengths_B: Tensor, size: int) -> None:
        self.lengths_B = lengths_B
        inside = torch.arange(size, device=lengths_B.device)[None] < lengths_B[:, None]
        self.mask_B1T = inside[:, None].float()
        self.count_B11 = lengths_B.float().view(-1, 1, 1)

    def cut(self, x_BCT: Tensor) -> Tensor:
        """Zeros past each row's end."""
        return x_BCT * self.mask_B1T.to(x_BCT.dtype)


class StyleNorm(nn.Module):
    """Instance norm over a row's valid frames, with gain and shift from its style."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.fc = nn.Linear(STYLE_WIDTH, 2 * channels)

    def forward(self, x_BCT: Tensor, style_BS: Tensor, span: Span) -> Tensor:
        gain, shift = self.fc(style_BS).float()[..., None].chunk(2, 1)
        return style_norm(x_BCT, gain, shift, span.mask_B1T, span.count_B11)


def style_norm(x: Tensor, gain: Tensor, shift: Tensor, mask: Tensor, count: Tensor) -> Tensor:
    """Return the norm of `StyleNorm`, in float32."""
    wide = x.float()
    mean = (wide * mask).sum(-1, keepdim=True) / count
    centred = (wide - mean) * mask
    variance = centred.square().sum(-1, keepdim=True) / count
    return (((1 + gain) * (centred * torch.rsqrt(variance + 1e-5)) + shift) * mask).to(x.dtype)


def style_norm_snake(
    x: Tensor, gain: Tensor, shift: Tensor, mask: Tensor, count: Tensor, alpha: Tensor
) -> Tensor:
    """Apply the norm and the snake activation ``x + sin(alpha x)^2 / alpha``: one kernel when compiled.

    Half of the vocoder's time goes here.
    """
    y = style_norm(x.float(), gain, shift, mask, count)
    return (y + torch.sin(alpha * y).square() / alpha).to(x.dtype)


def compile_norms() -> None:
    """Make one kernel of the vocoder's norm and snake, for all blocks of this process; for CUDA."""
    global style_norm_snake
    torch._dynamo.config.cache_size_limit = 64
    style_norm_snake = torch.compile(style_norm_snake, dynamic=True)


class SnakeBlock(nn.Module):
    """Three dilated residual convolutions of the vocoder (HiFi-GAN's first kind, with snakes and styles)."""

    _DILATIONS = (1, 3, 5)

    def __init__(self, channels: int, taps: int) -> None:
        super().__init__()

        def conv(dilation: int) -> nn.Conv1d:
            padding = (taps * dilation - dilation) // 2
            return nn.Conv1d(channels, channels, taps, dilation=dilation, padding=padding)

        def alphas() -> nn.ParameterList:
            return nn.ParameterList(nn.Parameter(torch.ones(1, channels, 1)) for _ in self._DILATIONS)

        self.convs1 = nn.ModuleList(conv(dilation) for dilation in self._DILATIONS)
        self.convs2 = nn.ModuleList(conv(1) for _ in self._DILATIONS)
        self.adain1 = nn.ModuleList(StyleNorm(channels) for _ in self._DILATIONS)
        self.adain2 = nn.ModuleList(StyleNorm(channels) for _ in self._DILATIONS)
        self.alpha1, self.alpha2 = alphas(), alphas()

    def forward(self, x_BCT: Tensor, style_BS: Tensor, span: Span) -> Tensor:
        steps = zip(self.convs1, self.convs2, self.adain1, self.adain2, self.alpha1, self.alpha2, strict=True)
        for conv1, conv2, norm1, norm2, alpha1, alpha2 in steps:
            inner = conv1(_snake(norm1, x_BCT, style_BS, span, alpha1))
            inner = conv2(_snake(norm2, inner, style_BS, span, alpha2))
            x_BCT = span.cut(inner) + x_BCT
        return x_BCT


def _snake(norm: nn.Module, x: Tensor, style: Tensor, span: Span, alpha: Tensor) -> Tensor:
    assert isinstance(norm, StyleNorm)
    gain, shift = norm.fc(style).float()[..., None].chunk(2, 1)
    return style_norm_snake(x, gain, shift, span.mask_B1T, span.count_B11, alpha)


class StyleBlock(nn.Module):
    """Two convolutions under a style, with a skip path; optionally twice as many frames."""

    def __init__(self, width_in: int, width_out: int, *, doubled: bool = False) -> None:
        super().__init__()
        self.doubled = doubled
        self.conv1 = nn.Conv1d(width_in, width_out, 3, padding=1)
        self.conv2 = nn.Conv1d(width_out, width_out, 3, padding=1)
        self.norm1, self.norm2 = StyleNorm(width_in), StyleNorm(width_out)
        self.conv1x1 = nn.Conv1d(width_in, width_out, 1, bias=False) if width_in != width_out else None
        if doubled:
            self.pool = nn.ConvTranspose1d(
                width_in, width_in, 3, stride=2, groups=width_in, padding=1, output_padding=1
            )

    def forward(self, x_BCT: Tensor, style_BS: Tensor, lengths_B: Tensor) -> Tensor:
        span = Span(lengths_B, x_BCT.shape[-1])
        inner = span.cut(F.leaky_relu(self.norm1(x_BCT, style_BS, span), 0.2))
        skip = x_BCT
        if self.doubled:
            inner = self.pool(inner)
            skip = F.interpolate(x_BCT, scale_factor=2, mode="nearest")
            span = Span(2 * lengths_B, inner.shape[-1])
            inner = span.cut(inner)
        if self.conv1x1 is not None:
            skip = self.conv1x1(skip)
        inner = span.cut(F.leaky_relu(self.norm2(self.conv1(inner), style_BS, span), 0.2))
        return span.cut(self.conv2(inner) + skip) * 2**-0.5


class ChannelNorm(nn.Module):
    """Layer norm over channels of [B, C, T]."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.gamma = nn.Parameter(torch.ones(channels))
        self.beta = nn.Parameter(torch.zeros(channels))

    def forward(self, x_BCT: Tensor) -> Tensor:
        normed = F.layer_norm(x_BCT.transpose(1, 2), self.gamma.shape, self.gamma, self.beta)
        return normed.transpose(1, 2)


def run_lstm(lstm: nn.LSTM, x_BTC: Tensor, lengths_B: Tensor) -> Tensor:
    """Return a bidirectional LSTM whose backward direction begins at each row's own end."""
    packed = nn.utils.rnn.pack_padded_sequence(x_BTC, lengths_B.cpu(), batch_first=True, enforce_sorted=False)
    out, _ = nn.utils.rnn.pad_packed_sequence(lstm(packed)[0], batch_first=True, total_length=x_BTC.shape[1])
    return out


def both_ways(width_in: int, width: int) -> nn.LSTM:
    """Return a bidirectional LSTM of `width` each way."""
    return nn.LSTM(width_in, width, batch_first=True, bidirectional=True)
