"""Rooms, noise and channels, as functions of a batch of audio [B, N] at 16 kHz."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor

from training.augment.draw import Draw

RATE = 16_000
_ROOM_SAMPLES = 6_400
# Lengths of transforms are multiples of this number, which has small factors only.
_TRANSFORM_STEP = 3_200


def active_level(audio_BN: Tensor) -> Tensor:
    """Return the root mean square of the samples that are not silent, [B, 1]."""
    loud = (audio_BN.abs() > 1e-3).sum(1, keepdim=True)
    return (audio_BN.square().sum(1, keepdim=True) / (loud + 1)).sqrt().clamp(min=1e-4)


class Spectrum:
    """Filters a batch of one length in the frequency domain, without wrapping its end to its start."""

    def __init__(self, num_samples: int, device: torch.device) -> None:
        self.num_samples = num_samples
        padded = num_samples + _ROOM_SAMPLES
        self.size = -(-padded // _TRANSFORM_STEP) * _TRANSFORM_STEP
        self.num_bins = self.size // 2 + 1
        self.khz = torch.linspace(0, RATE / 2000, self.num_bins, device=device)[None]

    def of(self, audio_BN: Tensor) -> Tensor:
        """Return the complex spectrum, [B, bins]."""
        spectrum: Tensor = torch.fft.rfft(audio_BN, n=self.size)
        return spectrum

    def back(self, spectrum: Tensor) -> Tensor:
        """Return the audio of a spectrum, cut to the batch's length."""
        audio: Tensor = torch.fft.irfft(spectrum, n=self.size)
        return audio[:, : self.num_samples]


def room_response(draw: Draw) -> Tensor:
    """Return impulse responses [B, 6400]: direct sound, some early reflections, a tail that gets duller.

    Reverberation times are 50 to 550 ms, some up to 880; direct to reverberant ratios -4 to 16 dB.
    """
    time = torch.arange(_ROOM_SAMPLES, device=draw.device)[None] / RATE
    decay = draw.uniform(0.05, 0.55) * torch.where(draw.chance(0.15), 1.6, 1.0)
    tail: Tensor = draw.normal(draw.num_rows, _ROOM_SAMPLES) * torch.exp(-6.9 * time / decay)
    tail = tail * (time * RATE > draw.uniform(8, 160))
    early = (draw.shares(draw.num_rows, _ROOM_SAMPLES) < 0.004) & (time < 0.06)
    tail = tail * (1.0 + 6.0 * early)
    spectrum = torch.fft.rfft(tail)
    khz = torch.linspace(0, RATE / 2000, spectrum.shape[1], device=draw.device)[None]
    dulled = spectrum / (1.0 + (khz / draw.uniform(1.5, 8.0)).square()).sqrt()
    tail = torch.fft.irfft(dulled, n=_ROOM_SAMPLES)
    level = tail.square().sum(1, keepdim=True).sqrt().clamp(min=1e-6)
    tail = tail / level * 10 ** (-draw.uniform(-4, 16) / 20)
    tail[:, 0] += 1.0
    return tail


def add_room(audio_BN: Tensor, spectrum: Spectrum, draw: Draw, strength: float) -> Tensor:
    """Add reverberation to some rows, and a smooth colouring of source and microphone to others."""
    heard = spectrum.of(audio_BN)
    heard = torch.where(draw.chance(0.45 * strength), heard * spectrum.of(room_response(draw)), heard)
    colour_db = draw.curve(spectrum.num_bins, 4.0) * draw.chance(0.6 * strength)
    return spectrum.back(heard * 10 ** (colour_db / 20))


def add_noise(audio_BN: Tensor, level_B1: Tensor, spectrum: Spectrum, draw: Draw, strength: float) -> Tensor:
    """Add coloured noise that swells and fades: 2 to 30 dB below most rows, 30 to 60 below others."""
    num_rows, num_samples = audio_BN.shape
    slope = (spectrum.khz + 0.03) ** (-draw.uniform(0, 2.2) / 2)
    colour = slope * 10 ** (draw.curve(spectrum.num_bins, 6.0) / 20)
    noise = spectrum.back(torch.fft.rfft(draw.normal(num_rows, spectrum.size)) * colour)
    noise = noise / noise.square().mean(1, keepdim=True).sqrt()
    swell = draw.normal(num_rows, 1, max(4, num_samples // 8_000))
    swell = F.interpolate(swell, size=num_samples, mode="linear")[:, 0]
    noise = noise * 10 ** (swell * draw.uniform(0, 4) / 20)
    ratio_db = torch.where(draw.chance(0.65 * strength), draw.uniform(2, 30), draw.uniform(30, 60))
    return audio_BN + noise * level_B1 * 10 ** (-ratio_db / 20)


def add_babble(audio_BN: Tensor, clean_BN: Tensor, level_B1: Tensor, draw: Draw, strength: float) -> Tensor:
    """Add four other samples of the batch at once, 6 to 25 dB below the speech, to some rows."""
    num_rows, num_samples = audio_BN.shape
    if num_rows < 7:
        return audio_BN
    others = [
        clean_BN.roll(draw.integer(1, num_rows), 0).roll(draw.integer(0, num_samples), 1) for _ in range(4)
    ]
    babble = torch.stack(others).sum(0)
    babble = babble / active_level(babble) * level_B1 * 10 ** (-draw.uniform(6, 25) / 20)
    return torch.where(draw.chance(0.15 * strength), audio_BN + babble, audio_BN)


def pass_channel(audio_BN: Tensor, spectrum: Spectrum, draw: Draw, strength: float) -> Tensor:
    """Apply band limits (some of a telephone), colouring, level, clipping, and the steps of a codec."""
    kind = draw.shares(draw.num_rows, 1)
    upper = torch.where(
        kind < 0.08, 4.0, torch.where(kind < 0.16, 5.5, torch.where(kind < 0.26, 7.0, 9.0))
    ) * draw.uniform(0.92, 1.04)
    telephone = draw.chance(0.15 * strength)
    upper = torch.where(telephone, draw.uniform(3.2, 3.8), upper)
    lower = torch.where(telephone, draw.uniform(0.15, 0.35), draw.uniform(0.0, 0.08))
    band = torch.sigmoid((upper - spectrum.khz) * 12) * torch.sigmoid((spectrum.khz - lower) * 60)
    colour_db = draw.curve(spectrum.num_bins, 3.0) * draw.chance(0.5 * strength)
    audio = spectrum.back(spectrum.of(audio_BN) * band * 10 ** (colour_db / 20))
    peak = audio.abs().amax(1, keepdim=True).clamp(min=1e-4)
    audio = audio / peak * 10 ** (draw.uniform(-28, 0) / 20)
    limit = audio.abs().amax(1, keepdim=True) * draw.uniform(0.25, 0.8)
    clipped = torch.minimum(torch.maximum(audio, -limit), limit)
    audio = torch.where(draw.chance(0.08 * strength), clipped, audio)
    coded = telephone & draw.chance(0.6 * strength) | draw.chance(0.04 * strength)
    audio = torch.where(coded, mu_law(audio), audio)
    floor = torch.where(draw.chance(0.85), 10 ** (draw.uniform(-95, -62) / 20), 0.0)
    return audio + draw.normal(*audio.shape) * floor


def mu_law(audio: Tensor) -> Tensor:
    """Return the 8-bit steps of G.711's mu-law."""
    compressed = torch.log1p(255.0 * audio.abs().clamp(max=1.0)) / math.log(256.0)
    steps = torch.round(compressed * 127) / 127
    return torch.sign(audio) * (256.0**steps - 1.0) / 255.0
