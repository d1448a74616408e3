"""Stands for NeMo's modules where NeMo is not installed."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from gpu_worker.steps.nemo_model import NemoState
from tests.oracle.models import tiny

MELS, WIDTH = 3, 4


@dataclass
class FakeNemo:
    """A token is a checksum of the samples behind its frame's newest mel frames."""

    chunk_frames: int
    groups: list[tuple[int, bool]] = field(default_factory=list)
    device = torch.device("cpu")
    hop_samples = 160
    window_samples = 400
    factor = 8
    max_symbols = 10
    fingerprint = "fake"
    tokenizer = tiny().tokenizer

    def language(self, wanted: str | None) -> str | None:
        return wanted

    def signal_start(self, first: int) -> int:
        return max(0, first - 3) * 160

    def mels(self, samples: Tensor, first_sample: int, first: int, end: int) -> Tensor:
        assert first_sample <= self.signal_start(first)
        rows = []
        for mel in range(first, end):
            start = 160 * mel - 200 - first_sample
            window = samples[max(0, start) : start + 400]
            assert len(window) >= 160, "a mel frame's samples are not there"
            rows.append(torch.full((MELS,), float(window.abs().clamp(max=1.0).sum())))
        return torch.stack(rows, dim=1)

    def encode(self, states: Sequence[NemoState], mels: Sequence[Tensor], language: str | None) -> Tensor:
        is_first = states[0].caches is None
        assert all((state.caches is None) == is_first for state in states)
        assert len({mel.shape for mel in mels}) == 1
        self.groups.append((len(states), is_first))
        frames = []
        for state, mel in zip(states, mels, strict=True):
            past = state.mels_FM if state.mels_FM is not None else torch.zeros(MELS, 7)
            joined = torch.cat([past[:, -7:], mel], dim=1)
            joined = torch.cat([joined, torch.zeros(MELS, -joined.shape[1] % 8)], dim=1)
            state.caches = (torch.zeros(1, 1, 1, 1), torch.zeros(1, 1, 1, 1), torch.zeros(1))
            state.mels_FM = torch.cat([past, mel], dim=1)[:, -9:]
            frames.append(joined[0].view(-1, 8).sum(1, keepdim=True).expand(-1, WIDTH))
        return torch.stack(frames)

    def decode(self, state: NemoState, encoded_TD: Tensor) -> list[tuple[int, int, float]]:
        sums = encoded_TD[:, 0].tolist()
        return [(1 + int(value * 7) % 500, number, 0.5) for number, value in enumerate(sums)]
