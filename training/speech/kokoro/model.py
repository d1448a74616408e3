"""The whole synthesiser: phonemes and a style to samples, many rows at once.

Shape legend: B rows, T phonemes, N frames of 25 ms.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors.torch import load_file
from torch import Tensor, nn

from training.speech.kokoro.encoders import Albert, SoundEncoder
from training.speech.kokoro.layers import STYLE_WIDTH, Span
from training.speech.kokoro.prosody import ProsodyPredictor
from training.speech.kokoro.vocoder import Decoder, Source

SAMPLES_PER_FRAME = 600


@dataclass(frozen=True, slots=True)
class Manner:
    """How a row is spoken, [B] each.

    `speed` divides durations and `hurry` scatters them, phoneme by phoneme, in parts of each; `pitch` is a
    factor, `range` how far pitch moves around a row's own mean, 1 as predicted.
    """

    speed_B: Tensor
    hurry_B: Tensor
    pitch_B: Tensor
    range_B: Tensor
    source: Source

    @classmethod
    def plain(cls, num_rows: int, device: torch.device) -> Manner:
        """As the model would speak by itself."""
        one, zero = torch.ones(num_rows, device=device), torch.zeros(num_rows, device=device)
        return cls(one, zero, one, one, Source(zero, zero))


class Kokoro(nn.Module):
    """Kokoro-82M for inference."""

    def __init__(self) -> None:
        super().__init__()
        self.bert = Albert()
        self.bert_encoder = nn.Linear(768, 512)
        self.predictor = ProsodyPredictor()
        self.text_encoder = SoundEncoder()
        self.decoder = Decoder()

    @classmethod
    def load(cls, path: Path, device: torch.device) -> Kokoro:
        """From a file of `onnx_weights.convert`. Raises RuntimeError for other tensors than the model has."""
        model = cls()
        model.load_state_dict({name: tensor.float() for name, tensor in load_file(path).items()})
        return model.eval().to(device)

    @torch.no_grad()
    def forward(
        self,
        symbols_BT: Tensor,
        lengths_B: Tensor,
        style_BS: Tensor,
        manner: Manner,
        half: torch.dtype | None = None,
    ) -> tuple[Tensor, Tensor]:
        """Return samples at 24 kHz, [B, samples] in float32, and how many of each row count.

        Args:
            symbols_BT: ids of phonemes with a 0 at both ends, padded by zeros.
            lengths_B: their number, the zeros at the ends included.
            style_BS: [B, 256], timbre first, prosody second.
            manner: how to speak.
            half: type of the vocoder's convolutions; None for float32.
        """
        span = Span(lengths_B, symbols_BT.shape[1])
        context = self.bert_encoder(self.bert(symbols_BT, span.mask_B1T[:, 0].bool()))
        timbre, prosody = style_BS[:, :STYLE_WIDTH], style_BS[:, STYLE_WIDTH:]
        encoded, durations = self.predictor.durations(context, prosody, span)
        frames_BT = self._frames(durations, span, manner)
        num_frames_B = frames_BT.sum(1)
        index_BN = _phoneme_of_frame(frames_BT, int(num_frames_B.max()))
        inside = Span(num_frames_B, index_BN.shape[1]).mask_B1T
        spoken = _stretched(encoded, index_BN) * inside.transpose(1, 2)
        pitch, energy = self.predictor.contours(spoken, prosody, num_frames_B)
        pitch = _moved(pitch, manner)
        sounds = self.text_encoder(symbols_BT, span).transpose(1, 2)
        sounds = _stretched(sounds, index_BN).transpose(1, 2) * inside
        with torch.autocast(symbols_BT.device.type, dtype=half or torch.float16, enabled=half is not None):
            samples = self.decoder(sounds, pitch, energy, timbre, num_frames_B, manner.source)
        return samples, num_frames_B * SAMPLES_PER_FRAME

    @staticmethod
    def _frames(durations_BT: Tensor, span: Span, manner: Manner) -> Tensor:
        scatter = torch.exp(manner.hurry_B[:, None] * torch.randn_like(durations_BT))
        frames = (durations_BT * scatter / manner.speed_B[:, None]).round().clamp(min=1)
        return (frames * span.mask_B1T[:, 0]).long()


def _phoneme_of_frame(frames_BT: Tensor, num_frames: int) -> Tensor:
    """Which phoneme each frame belongs to, [B, N]."""
    ends_BT = frames_BT.cumsum(1)
    frame = torch.arange(num_frames, device=frames_BT.device).expand(len(frames_BT), -1).contiguous()
    return torch.searchsorted(ends_BT, frame, right=True).clamp(max=frames_BT.shape[1] - 1)


def _stretched(x_BTC: Tensor, index_BN: Tensor) -> Tensor:
    """Return a vector for each frame from that of its phoneme, [B, N, C]."""
    return x_BTC.gather(1, index_BN[..., None].expand(-1, -1, x_BTC.shape[-1]))


def _moved(pitch_BK: Tensor, manner: Manner) -> Tensor:
    """Pitch with another range around its mean and another height; unvoiced frames stay unvoiced."""
    voiced = (pitch_BK > 10).float()
    mean_B1 = (pitch_BK * voiced).sum(1, keepdim=True) / voiced.sum(1, keepdim=True).clamp(min=1)
    ranged = mean_B1 + (pitch_BK - mean_B1) * manner.range_B[:, None]
    # Never so low that a voiced frame would count as unvoiced.
    ranged = ranged.clamp(min=10.0) * manner.pitch_B[:, None]
    return torch.where(voiced > 0, ranged, pitch_BK)
