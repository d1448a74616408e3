"""Reference of `gather_samples.py` in plain PyTorch.

Shape suffixes: B streams of the step, N samples of a row, S slots, C samples of a ring.
"""

from __future__ import annotations

import torch
from torch import Tensor


def gather_samples(
    ring_SC: Tensor, slots_B: Tensor, is_float_B: Tensor, first_B: Tensor, end_B: Tensor, num_columns: int
) -> Tensor:
    """Return rows of samples from the slots' rings, in float32.

    Column i of a row is the stream's sample `first_B` + i, whose place in the ring is its number modulo C; it
    is zero before sample 0 and from `end_B` on.  A ring holds float32, or pcm16 in the first half of its
    bytes.
    """
    sample_BN = first_B.long()[:, None] + torch.arange(num_columns, device=first_B.device)
    floats_BC = ring_SC.to(slots_B.device)[slots_B.long()]
    pcm16_BC = floats_BC.view(torch.int16)[:, : ring_SC.shape[1]].float() / 32768
    # The bits of pcm16, read as float32, may be NaN: they must not be multiplied by zero.
    rows_BC = torch.where(is_float_B[:, None] != 0, floats_BC, pcm16_BC)
    found_BN = rows_BC.gather(1, sample_BN.remainder(ring_SC.shape[1]))
    return found_BN * ((sample_BN >= 0) & (sample_BN < end_B[:, None]))
