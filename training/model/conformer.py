"""Conformer layers and encoder over whole recordings under a chunked attention mask.

Shape legend: B rows, T encoder frames, D model width, H heads, E head width, P = 2 T - 1 relative positions.

Source: NeMo `ConformerEncoder` (`rel_pos`, `chunked_limited`, causal convolution with layer norm).
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from gpu_worker.model.config import ModelConfig
from training.model.centred import CentredLinear, CentredPointwise1d, sequence_mask
from training.model.subsampling import Subsampling, dropout

# Added to scores that the mask forbids. Rows past a recording's end are masked whole: minus infinity would
# turn them to NaN.
_FORBIDDEN = -1e4


class FeedForward(nn.Module):
    """Linear, SiLU, linear."""

    def __init__(self, config: ModelConfig, drop: float) -> None:
        super().__init__()
        self.drop = drop
        self.linear1 = CentredLinear(config.d_model, config.ff_dim, bias=config.use_bias)
        self.linear2 = CentredLinear(config.ff_dim, config.d_model, bias=config.use_bias)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.linear2(dropout(F.silu(self.linear1(x)), self.drop, self))
        return out


class Attention(nn.Module):
    """Multi-head attention with relative positions (Dai et al. 2019)."""

    def __init__(self, config: ModelConfig, drop: float) -> None:
        super().__init__()
        self.drop = drop
        self.num_heads, self.head_dim = config.num_heads, config.head_dim
        for name in ("q", "k", "v", "out"):
            layer = CentredLinear(config.d_model, config.d_model, bias=config.use_bias)
            self.add_module(f"linear_{name}", layer)
        self.linear_pos = nn.Linear(config.d_model, config.d_model, bias=False)
        self.pos_bias_u = nn.Parameter(torch.zeros(config.num_heads, config.head_dim))
        self.pos_bias_v = nn.Parameter(torch.zeros(config.num_heads, config.head_dim))

    def _heads(self, name: str, x: Tensor) -> Tensor:
        """Return a projection as [B, T, H, E]."""
        projected: Tensor = self.get_submodule(f"linear_{name}")(x)
        return projected.view(*x.shape[:2], self.num_heads, self.head_dim)

    def forward(self, x_BTD: Tensor, positions_1PD: Tensor, mask_B1TT: Tensor) -> Tensor:
        """Attend under `mask_B1TT`, which is added to the scores."""
        num_rows, num_frames, width = x_BTD.shape
        q_BTHE = self._heads("q", x_BTD)
        k_BHET = self._heads("k", x_BTD).permute(0, 2, 3, 1)
        v_BHTE = self._heads("v", x_BTD).transpose(1, 2)
        r_1HEP = self._heads("pos", positions_1PD).permute(0, 2, 3, 1)
        content_BHTT = (q_BTHE + self.pos_bias_u.to(q_BTHE.dtype)).transpose(1, 2) @ k_BHET
        position_BHTP = (q_BTHE + self.pos_bias_v.to(q_BTHE.dtype)).transpose(1, 2) @ r_1HEP
        scores = (content_BHTT + _shifted(position_BHTP)).float() * self.head_dim**-0.5 + mask_B1TT
        weights = dropout(scores.softmax(-1).to(v_BHTE.dtype), self.drop, self)
        attended = (weights @ v_BHTE).transpose(1, 2).reshape(num_rows, num_frames, width)
        out: Tensor = self.get_submodule("linear_out")(attended)
        return out


def _shifted(position_BHTP: Tensor) -> Tensor:
    """Convert scores by relative position to scores by key frame, [B, H, T, T]."""
    num_rows, num_heads, num_frames, num_positions = position_BHTP.shape
    padded = F.pad(position_BHTP, (1, 0)).view(num_rows, num_heads, num_positions + 1, num_frames)
    moved = padded[:, :, 1:].reshape(num_rows, num_heads, num_frames, num_positions)
    return moved[..., :num_frames]


class Convolution(nn.Module):
    """Pointwise, GLU, causal depthwise, layer norm, SiLU, pointwise."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        width, self.taps = config.d_model, config.conv_kernel
        self.pointwise_conv1 = CentredPointwise1d(width, 2 * width)
        self.depthwise_conv = nn.Conv1d(width, width, self.taps, groups=width, bias=False)
        # Checkpoints name every kind of norm batch_norm.
        self.batch_norm = nn.LayerNorm(width)
        self.pointwise_conv2 = CentredPointwise1d(width, width)

    def forward(self, x_BTD: Tensor, valid_BT1: Tensor) -> Tensor:
        gated = F.glu(self.pointwise_conv1(x_BTD), -1) * valid_BT1
        mixed = self.depthwise_conv(F.pad(gated.transpose(1, 2), (self.taps - 1, 0))).transpose(1, 2)
        out: Tensor = self.pointwise_conv2(F.silu(self.batch_norm(mixed)))
        return out


class ConformerLayer(nn.Module):
    """Half feed-forward, attention, convolution, half feed-forward, layer norm."""

    def __init__(self, config: ModelConfig, drop: float) -> None:
        super().__init__()
        self.drop = drop
        self.norm_feed_forward1 = nn.LayerNorm(config.d_model)
        self.feed_forward1 = FeedForward(config, drop)
        self.norm_self_att = nn.LayerNorm(config.d_model)
        self.self_attn = Attention(config, drop)
        self.norm_conv = nn.LayerNorm(config.d_model)
        self.conv = Convolution(config)
        self.norm_feed_forward2 = nn.LayerNorm(config.d_model)
        self.feed_forward2 = FeedForward(config, drop)
        self.norm_out = nn.LayerNorm(config.d_model)

    def forward(self, x: Tensor, positions: Tensor, mask: Tensor, valid_BT1: Tensor) -> Tensor:
        x = x + 0.5 * dropout(self.feed_forward1(self.norm_feed_forward1(x)), self.drop, self)
        x = x + dropout(self.self_attn(self.norm_self_att(x), positions, mask), self.drop, self)
        x = x + dropout(self.conv(self.norm_conv(x), valid_BT1), self.drop, self)
        x = x + 0.5 * dropout(self.feed_forward2(self.norm_feed_forward2(x)), self.drop, self)
        out: Tensor = self.norm_out(x)
        return out


class Encoder(nn.Module):
    """Subsampling and conformer layers.

    Args:
        config: architecture; without biases and without scaled inputs, as in the whole family.
        drop: share of activations that training drops.
        middle: index of the layer whose output the phoneme head reads.
    """

    def __init__(self, config: ModelConfig, drop: float, middle: int) -> None:
        super().__init__()
        if config.use_bias or config.xscaling or config.prompt is not None:
            raise ValueError("Training covers models without biases, without xscaling and without prompts.")
        self.drop, self.middle = drop, middle
        self.left_frames = config.default_context[0]
        self.pre_encode = Subsampling(config)
        self.layers = nn.ModuleList(ConformerLayer(config, drop) for _ in range(config.num_layers))

    def forward(
        self, mel_BMF: Tensor, num_mels_B: Tensor, right_frames: Tensor
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Return encoded_BTD, the number of frames of each row, and the middle layer's output.

        `right_frames` is the right context of the mask, an int64 tensor without axes, so that one captured
        graph serves all contexts; a chunk is one frame longer.
        """
        x, num_frames_B = self.pre_encode(mel_BMF, num_mels_B)
        x = dropout(x, self.drop, self)
        num_frames, width = x.shape[1:]
        valid_BT = sequence_mask(num_frames_B, num_frames)
        allowed_TT = chunked_mask(num_frames, self.left_frames, right_frames)
        allowed_BTT = allowed_TT[None] & valid_BT[:, None] & valid_BT[:, :, None]
        mask = torch.where(allowed_BTT, 0.0, _FORBIDDEN)[:, None]
        positions = sinusoids(num_frames, width, x.device)
        valid_BT1 = valid_BT[..., None].to(x.dtype)
        middle = x
        for index, layer in enumerate(self.layers):
            x = layer(x, positions, mask, valid_BT1)
            if index == self.middle:
                middle = x
        return x, num_frames_B, middle


def chunked_mask(num_frames: int, left_frames: int, right_frames: Tensor) -> Tensor:
    """Return bool [T, T]: a frame sees its own chunk and the whole chunks within the left context."""
    frame = torch.arange(num_frames, device=right_frames.device)
    chunk = torch.div(frame, right_frames + 1, rounding_mode="floor")
    behind = chunk[:, None] - chunk[None]
    return (behind >= 0) & (behind <= torch.div(left_frames, right_frames + 1, rounding_mode="floor"))


def sinusoids(num_frames: int, width: int, device: torch.device) -> Tensor:
    """Return the sinusoids [1, 2 T - 1, D] of the distances T - 1 .. 1 - T."""
    distance = torch.arange(num_frames - 1, -num_frames, -1.0, device=device)[:, None]
    rates = torch.exp(
        torch.arange(0, width, 2, dtype=torch.float32, device=device) * -(math.log(10000.0) / width)
    )
    return torch.stack([(distance * rates).sin(), (distance * rates).cos()], -1).reshape(1, -1, width)
