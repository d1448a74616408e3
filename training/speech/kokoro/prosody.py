"""Kokoro's prosody: how long each phoneme lasts, how high and how loud each frame is.

Shape legend: B rows, T phonemes, N frames of 25 ms (and twice as many behind the doubling blocks).
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from training.speech.kokoro.layers import STYLE_WIDTH, Span, StyleBlock, both_ways, run_lstm

_WIDTH = 512


class _StyleLayerNorm(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.fc = nn.Linear(STYLE_WIDTH, 2 * _WIDTH)

    def forward(self, x_BTC: Tensor, style_BS: Tensor) -> Tensor:
        gain, shift = self.fc(style_BS)[:, None].chunk(2, -1)
        out: Tensor = (1 + gain) * F.layer_norm(x_BTC, (_WIDTH,)) + shift
        return out


class _DurationEncoder(nn.Module):
    """LSTMs and norms in turn; each takes the style along."""

    def __init__(self) -> None:
        super().__init__()
        parts: list[nn.Module] = []
        for _ in range(3):
            parts += [both_ways(_WIDTH + STYLE_WIDTH, 256), _StyleLayerNorm()]
        self.lstms = nn.ModuleList(parts)

    def forward(self, x_BTC: Tensor, style_BS: Tensor, span: Span) -> Tensor:
        style_BTS = style_BS[:, None].expand(-1, x_BTC.shape[1], -1)
        mask_BT1 = span.mask_B1T.transpose(1, 2)
        x = torch.cat([x_BTC, style_BTS], -1) * mask_BT1
        for part in self.lstms:
            if isinstance(part, nn.LSTM):
                x = run_lstm(part, x, span.lengths_B)
            else:
                x = torch.cat([part(x, style_BS), style_BTS], -1) * mask_BT1
        return x


class _DurationOutput(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.linear_layer = nn.Linear(_WIDTH, 50)


class ProsodyPredictor(nn.Module):
    """Durations of phonemes, and pitch and energy of frames, all under a style."""

    def __init__(self) -> None:
        super().__init__()
        self.text_encoder = _DurationEncoder()
        self.lstm = both_ways(_WIDTH + STYLE_WIDTH, 256)
        self.shared = both_ways(_WIDTH + STYLE_WIDTH, 256)
        self.duration_proj = _DurationOutput()

        def blocks() -> nn.ModuleList:
            return nn.ModuleList(
                [StyleBlock(512, 512), StyleBlock(512, 256, doubled=True), StyleBlock(256, 256)]
            )

        self.F0, self.N = blocks(), blocks()
        self.F0_proj, self.N_proj = nn.Conv1d(256, 1, 1), nn.Conv1d(256, 1, 1)

    def durations(self, context_BTC: Tensor, style_BS: Tensor, span: Span) -> tuple[Tensor, Tensor]:
        """Return context for `contours`, [B, T, 640], and frames of each phoneme, float [B, T]."""
        encoded = self.text_encoder(context_BTC, style_BS, span)
        hidden = run_lstm(self.lstm, encoded, span.lengths_B)
        logits: Tensor = self.duration_proj.linear_layer(hidden)
        return encoded, torch.sigmoid(logits).sum(-1)

    def contours(self, frames_BNC: Tensor, style_BS: Tensor, num_frames_B: Tensor) -> tuple[Tensor, Tensor]:
        """Pitch in hertz (near zero where unvoiced) and energy, [B, 2 N] each."""
        shared = run_lstm(self.shared, frames_BNC, num_frames_B).transpose(1, 2)
        out = []
        for (first, second, third), project in ((self.F0, self.F0_proj), (self.N, self.N_proj)):
            y = second(first(shared, style_BS, num_frames_B), style_BS, num_frames_B)
            out.append(project(third(y, style_BS, 2 * num_frames_B)).squeeze(1))
        return out[0], out[1]
