"""Reference of `begin_streams.py` in plain PyTorch.

Shape suffixes: B streams of the step, L LSTM layers, S slots, H prediction width, J joint width.
"""

from __future__ import annotations

from torch import Tensor


def begin_streams(
    hidden_LSH: Tensor,
    cell_LSH: Tensor,
    output_SJ: Tensor,
    node_SM: Tensor,
    slots_B: Tensor,
    start_B: Tensor,
    begin_LH: Tensor,
    begin_cell_LH: Tensor,
    begin_output_J: Tensor,
) -> None:
    """Set each row that begins a stream (`start_B` 0) to the first state of the prediction network.

    Its states in the two boosting trees, `node_SM`, are set to the root.
    """
    new = slots_B[start_B == 0].long()
    hidden_LSH[:, new] = begin_LH[:, None]
    cell_LSH[:, new] = begin_cell_LH[:, None]
    output_SJ[new] = begin_output_J
    node_SM[new] = 0
