"""Matrix products with weights, as this machine does them soonest for the rows that there are.

One stream has two rows in a step: a chunk of 160 ms.  Such a product takes as long as its weights take to
come from memory, and the library of matrix products reads them at a third to a half of the speed of a plain
sum.  A weighted sum of the weights' rows (`embedding_bag`) is as good, and up to 1.7 times as fast where they
are short.  It takes each row by itself, so that a row's sums do not depend on the others.
"""

from __future__ import annotations

from functools import cache
from typing import Final

import torch
from torch import Tensor

# Beyond, the library is as fast: more rows share what it reads.
_MAX_BAG_ROWS: Final = 3
# With longer rows the library is as fast.
_MAX_BAG_OUTPUTS: Final = 576
# Larger weights, read again for each row, do not fit into a core's cache.
_MAX_BAG_NUMBERS: Final = 1 << 19


class Product:
    """A linear layer.

    Weights that are summed in bags, and those that widen their input, stand as [inputs, outputs].  As
    [outputs, inputs], in which checkpoints have them, a product of two rows with 768 outputs of 192 inputs
    takes twice as long on a CPU, and one of 64 a tenth more.

    Args:
        weight_OutIn: as checkpoints have it.
        bias_Out: added to each row; None for none.
    """

    def __init__(self, weight_OutIn: Tensor, bias_Out: Tensor | None = None) -> None:
        num_outputs, num_inputs = weight_OutIn.shape
        self._bags = (
            weight_OutIn.device.type == "cpu"
            and weight_OutIn.dtype == torch.float32
            and num_outputs <= _MAX_BAG_OUTPUTS
            and weight_OutIn.numel() <= _MAX_BAG_NUMBERS
        )
        self._weight_InOut = weight_OutIn.t()
        if self._bags or num_outputs > num_inputs:
            self._weight_InOut = self._weight_InOut.contiguous()
        self._bias_Out = bias_Out

    def __call__(self, x_RowsIn: Tensor) -> Tensor:
        """[rows, inputs] to [rows, outputs]."""
        if self._bags and x_RowsIn.shape[0] <= _MAX_BAG_ROWS:
            out = self._sum_bags(x_RowsIn)
            return out if self._bias_Out is None else out.add_(self._bias_Out)
        if self._bias_Out is None:
            return torch.mm(x_RowsIn, self._weight_InOut)
        return torch.addmm(self._bias_Out, x_RowsIn, self._weight_InOut)

    def over_last(self, x: Tensor) -> Tensor:
        """[..., inputs] to [..., outputs]."""
        return self(x.reshape(-1, x.shape[-1])).view(*x.shape[:-1], -1)

    def add_to(self, total_RowsOut: Tensor, x_RowsIn: Tensor) -> None:
        """Add the product to `total_RowsOut` in place."""
        if self._bags and x_RowsIn.shape[0] <= _MAX_BAG_ROWS:
            total_RowsOut.add_(self._sum_bags(x_RowsIn))
        else:
            total_RowsOut.addmm_(x_RowsIn, self._weight_InOut)
        if self._bias_Out is not None:
            total_RowsOut.add_(self._bias_Out)

    def _sum_bags(self, x_RowsIn: Tensor) -> Tensor:
        index, first = _bags(*x_RowsIn.shape)
        out: Tensor = torch.embedding_bag(
            self._weight_InOut, index, first, False, 0, False, x_RowsIn.reshape(-1), False, None
        )[0]
        return out


@cache
def _bags(num_rows: int, num_inputs: int) -> tuple[Tensor, Tensor]:
    """Which rows of the weights each row's bag holds, all of them; and where each bag begins."""
    index = torch.arange(num_inputs, dtype=torch.int32).repeat(num_rows)
    return index, torch.arange(0, num_rows * num_inputs, num_inputs, dtype=torch.int32)
