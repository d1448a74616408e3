"""Kokoro's decoder and vocoder: sounds, pitch and energy to samples at 24 kHz.

Shape legend: B rows, N frames of 25 ms, K = 2 N frames of 12.5 ms of pitch.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from training.speech.kokoro.layers import SnakeBlock, Span, StyleBlock

RATE = 24_000
_SAMPLES_PER_PITCH = 300
_HARMONICS = 9
_TRANSFORM, _HOP = 20, 5


@dataclass(frozen=True, slots=True)
class Source:
    """How the voice itself sounds, [B] each.

    `breath` is noise added to voiced sounds, in parts of the usual voice; `flutter` is how far pitch strays
    from its contour from one frame to the next, in parts of the pitch.
    """

    breath_B: Tensor
    flutter_B: Tensor


class _HarmonicSource(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.l_linear = nn.Linear(_HARMONICS, 1)

    def forward(self, pitch_BK: Tensor, source: Source | None) -> Tensor:
        """Excitation [B, 300 K]: a sine for each harmonic where there is pitch, else noise."""
        voiced_BK = pitch_BK > 10
        if source is not None:
            stray = torch.randn_like(pitch_BK) * source.flutter_B[:, None]
            pitch_BK = pitch_BK * (1.0 + stray)
        harmonics = torch.arange(1, _HARMONICS + 1, device=pitch_BK.device)
        turns_BHK = ((pitch_BK[:, :, None] * harmonics / RATE) % 1).transpose(1, 2)
        phase = turns_BHK.cumsum(-1) * (2 * math.pi * _SAMPLES_PER_PITCH)
        # Phase grows linearly between frames, as pitch is constant within one.
        phase = F.interpolate(phase, scale_factor=float(_SAMPLES_PER_PITCH), mode="linear")
        voiced = voiced_BK.float().repeat_interleave(_SAMPLES_PER_PITCH, 1)[:, None]
        noise = 0.003 * voiced + 0.1 / 3 * (1 - voiced)
        if source is not None:
            noise = noise + 0.1 * source.breath_B[:, None, None] * voiced
        waves = 0.1 * torch.sin(phase) * voiced + noise * torch.randn_like(phase)
        out: Tensor = torch.tanh(self.l_linear(waves.transpose(1, 2))).squeeze(-1)
        return out


class Generator(nn.Module):
    """iSTFTNet (Kaneko et al. 2022) with a harmonic source."""

    window: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.m_source = _HarmonicSource()
        self.ups = nn.ModuleList(
            [
                nn.ConvTranspose1d(512, 256, 20, 10, padding=5),
                nn.ConvTranspose1d(256, 128, 12, 6, padding=3),
            ]
        )
        self.resblocks = nn.ModuleList(
            SnakeBlock(channels, taps) for channels in (256, 128) for taps in (3, 7, 11)
        )
        self.noise_convs = nn.ModuleList([nn.Conv1d(22, 256, 12, 6, padding=3), nn.Conv1d(22, 128, 1)])
        self.noise_res = nn.ModuleList([SnakeBlock(256, 7), SnakeBlock(128, 11)])
        self.conv_post = nn.Conv1d(128, 22, 7, padding=3)
        self.register_buffer("window", torch.hann_window(_TRANSFORM), persistent=False)

    def forward(
        self, x: Tensor, style_BS: Tensor, pitch_BK: Tensor, lengths_B: Tensor, source: Source | None
    ) -> Tensor:
        """Return samples [B, 300 K] in float32; `lengths_B` counts frames of pitch."""
        harmonic = self._harmonic(pitch_BK, lengths_B, source).to(x.dtype)
        for level, up in enumerate(self.ups):
            lengths = lengths_B * 10 if level == 0 else lengths_B * 60 + 1
            excited = self.noise_convs[level](harmonic)
            span = Span(lengths, excited.shape[-1])
            excited = self.noise_res[level](span.cut(excited), style_BS, span)
            x = up(F.leaky_relu(x, 0.1))
            if level == 1:
                x = F.pad(x, (1, 0), mode="reflect")
            x = span.cut(x + excited)
            blocks = [self.resblocks[3 * level + kind](x, style_BS, span) for kind in range(3)]
            x = span.cut(torch.stack(blocks).mean(0))
        x = self.conv_post(F.leaky_relu(x)).float()
        bins = _TRANSFORM // 2 + 1
        with torch.autocast(x.device.type, enabled=False):
            spectrum = torch.polar(torch.exp(x[:, :bins]), torch.sin(x[:, bins:]))
            samples: Tensor = torch.istft(spectrum, _TRANSFORM, _HOP, _TRANSFORM, self.window)
        return samples

    def _harmonic(self, pitch_BK: Tensor, lengths_B: Tensor, source: Source | None) -> Tensor:
        """Magnitude and phase of the excitation, [B, 22, frames]."""
        with torch.autocast(pitch_BK.device.type, enabled=False):
            excitation = self.m_source(pitch_BK.float(), source)
            span = Span(lengths_B * _SAMPLES_PER_PITCH, excitation.shape[1])
            spectrum = torch.stft(
                excitation * span.mask_B1T[:, 0],
                _TRANSFORM,
                _HOP,
                _TRANSFORM,
                self.window,
                return_complex=True,
            )
            return torch.cat([spectrum.abs(), spectrum.angle()], 1)


class Decoder(nn.Module):
    """Sounds with pitch and energy to the vocoder's input, and the vocoder."""

    def __init__(self) -> None:
        super().__init__()
        self.encode = StyleBlock(514, 1024)
        self.decode = nn.ModuleList(
            [*(StyleBlock(1090, 1024) for _ in range(3)), StyleBlock(1090, 512, doubled=True)]
        )
        self.F0_conv = nn.Conv1d(1, 1, 3, 2, 1)
        self.N_conv = nn.Conv1d(1, 1, 3, 2, 1)
        self.asr_res = nn.Sequential(nn.Conv1d(512, 64, 1))
        self.generator = Generator()

    def forward(
        self,
        sounds_BCN: Tensor,
        pitch_BK: Tensor,
        energy_BK: Tensor,
        style_BS: Tensor,
        num_frames_B: Tensor,
        source: Source | None,
    ) -> Tensor:
        """Return samples [B, 600 N]."""
        span = Span(num_frames_B, sounds_BCN.shape[-1])
        fine = Span(2 * num_frames_B, pitch_BK.shape[-1])
        pitch = span.cut(self.F0_conv(fine.cut(pitch_BK[:, None])))
        energy = span.cut(self.N_conv(fine.cut(energy_BK[:, None])))
        x = self.encode(span.cut(torch.cat([sounds_BCN, pitch, energy], 1)), style_BS, num_frames_B)
        sounds = span.cut(self.asr_res(sounds_BCN))
        for block in self.decode:
            x = block(torch.cat([x, sounds, pitch, energy], 1), style_BS, num_frames_B)
        out: Tensor = self.generator(x, style_BS, pitch_BK, 2 * num_frames_B, source)
        return out
