"""Plain PyTorch of `begin_streams.py`: what the kernel must compute.

Shape suffixes: B streams of the step, L LSTM layers, S slots, H prediction width, J joint width.
"""

from __future__ import annotations

from torch import Tensor


def begin_streams(
    hidden_LSH: Tensor,
    cell_LSH: Tensor,
    output_SJ: Tensor,
    slots_B: Tensor,
    start_B: Tensor,
    begin_LH: Tensor,
    begin_cell_LH: Tensor,
    begin_output_J: Tensor,
) -> None:
    """Put the prediction network of every row that begins a stream (`start_B` 0) to its first state."""
    new = slots_B[start_B == 0].long()
    hidden_LSH[:, new] = begin_LH[:, None]
    cell_LSH[:, new] = begin_cell_LH[:, None]
    output_SJ[new] = begin_output_J
