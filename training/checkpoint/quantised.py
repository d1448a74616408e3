"""Tensors with a few bits for each number; each block of numbers has its own range."""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

_SMALLEST_STEP = 1e-30


@dataclass(frozen=True, slots=True)
class Quantised:
    """Numbers as multiples of their block's step from the block's `begin`.

    `codes` are uint8, two to a byte for 4 bits. `step` and `begin` are float32, one for each block; without
    `begin` the codes are centred on zero.
    """

    codes: Tensor
    step: Tensor
    begin: Tensor | None
    size: int
    bits: int
    block: int


def quantise(x_N: Tensor, bits: int, block: int, *, centred: bool) -> Quantised:
    """Round a flat tensor to ``2**bits - 1`` levels in each block.

    Args:
        x_N: finite float32 numbers.
        bits: 4 or 8.
        block: count of numbers that share a range.
        centred: whether each range is centred on zero, so that a zero stays exactly zero.
    """
    if bits not in (4, 8):
        raise ValueError(f"{bits} bits a number; 4 and 8 are supported")
    size = x_N.numel()
    blocks = F.pad(x_N.detach().float().cpu(), (0, -size % block)).view(-1, block)
    middle = 2 ** (bits - 1) - 1
    begin = None if centred else blocks.amin(1)
    width = 2 * blocks.abs().amax(1) if begin is None else blocks.amax(1) - begin
    step = (width / (2 * middle)).clamp(min=_SMALLEST_STEP)
    levels = blocks / step[:, None] + middle if begin is None else (blocks - begin[:, None]) / step[:, None]
    codes = levels.round().clamp(0, 2 * middle).to(torch.uint8).view(-1)
    if bits == 4:
        codes = F.pad(codes, (0, codes.numel() % 2)).view(-1, 2)
        codes = codes[:, 0] | codes[:, 1] << 4
    return Quantised(codes, step, begin, size, bits, block)


def restore(quantised: Quantised) -> Tensor:
    """Return the numbers, to within half a step of their block."""
    codes = quantised.codes
    if quantised.bits == 4:
        codes = torch.stack([codes & 15, codes >> 4], 1).view(-1)
    num_blocks = quantised.step.numel()
    levels = codes[: num_blocks * quantised.block].view(num_blocks, quantised.block).float()
    if quantised.begin is None:
        blocks = (levels - (2 ** (quantised.bits - 1) - 1)) * quantised.step[:, None]
    else:
        blocks = quantised.begin[:, None] + levels * quantised.step[:, None]
    numbers: Tensor = blocks.view(-1)[: quantised.size]
    return numbers
