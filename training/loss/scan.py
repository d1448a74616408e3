"""The recursion over frames that both directions of the lattice share, in plain PyTorch.

Shape legend: T frames, N rows (both directions of every recording), U target positions.
"""

from __future__ import annotations

import torch
from torch import Tensor


def scan_frames(first_NU: Tensor, into_TNU: Tensor) -> Tensor:
    """``Y[0] = logcumsumexp(first)``, then ``Y[t] = logcumsumexp(Y[t - 1] + into[t])`` over U.

    Args:
        first_NU: log-weights at the first frame.
        into_TNU: log-weights that are added on the way into each frame; `into[0]` is not read.

    Returns:
        Y_TNU in float32.
    """
    out_TNU = torch.empty_like(into_TNU)
    torch.logcumsumexp(first_NU, -1, out=out_TNU[0])
    for frame in range(1, len(into_TNU)):
        torch.logcumsumexp(out_TNU[frame - 1] + into_TNU[frame], -1, out=out_TNU[frame])
    return out_TNU
