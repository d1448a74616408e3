"""Random numbers of an augmentation, from the device for each row or from the host for all rows."""

from __future__ import annotations

import random

import torch
from torch import Tensor


class Draw:
    """Draws random numbers for the rows of a batch; equal seeds, device and batch draw equal numbers.

    A number that decides a shape comes from `host`: reading it from the device would halt the device.
    """

    def __init__(self, generator: torch.Generator, num_rows: int, host: random.Random) -> None:
        self._generator, self._host = generator, host
        self.num_rows = num_rows
        self.device = generator.device

    def uniform(self, low: float, high: float) -> Tensor:
        """Draw numbers between two limits, [B, 1]."""
        return low + (high - low) * self.shares(self.num_rows, 1)

    def chance(self, share: float) -> Tensor:
        """Draw bool [B, 1], true for about a share of the rows."""
        return self.shares(self.num_rows, 1) < share

    def normal(self, *shape: int) -> Tensor:
        """Draw normal numbers of any shape."""
        return torch.randn(shape, generator=self._generator, device=self.device)

    def shares(self, *shape: int) -> Tensor:
        """Draw uniform numbers from 0 to 1 of any shape."""
        return torch.rand(shape, generator=self._generator, device=self.device)

    def integer(self, low: int, high: int) -> int:
        """Draw one number for the whole batch, from low to high - 1."""
        return self._host.randrange(low, high)

    def curve(self, num_bins: int, spread_db: Tensor | float, knots: int = 10) -> Tensor:
        """Draw a smooth gain in dB over frequency, [B, bins]: knots are denser where the ear hears finer."""
        gain = self.normal(self.num_rows, knots) * spread_db
        axis = torch.linspace(0, 1, num_bins, device=self.device)
        place = torch.log1p(axis * 30) / torch.log1p(torch.tensor(30.0, device=self.device)) * (knots - 1)
        below = place.floor().clamp(max=knots - 2).long()
        share = place - below
        return gain[:, below] * (1 - share) + gain[:, below + 1] * share
