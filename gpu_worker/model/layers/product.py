"""Matrix products with weights, by the method that is fastest on a CPU for the number of rows.

One stream has two rows in a step: a chunk of 160 ms. The time of such a product is the time of reading its
weights from memory, and the matrix library reads them at a third to a half of the speed of a plain sum. A
weighted sum of the weights' rows (`embedding_bag`) has the same result, and is up to 1.7 times as fast where
rows are short. It computes each row separately, so a row's sums do not depend on other rows.
"""

from __future__ import annotations

from functools import cache
from typing import Final

import torch
from torch import Tensor

# With more rows the matrix library is as fast: the rows share the weights that it reads.
_MAX_BAG_ROWS: Final = 3
# With longer rows of weights the matrix library is as fast.
_MAX_BAG_OUTPUTS: Final = 576
# Larger weights, read again for each row, do not fit into a core's cache.
_MAX_BAG_NUMBERS: Final = 1 << 19


class Product:
    """A linear layer.

    Weights that are summed in bags, and weights with more outputs than inputs, are laid out as [inputs,
    outputs]. In the layout of checkpoints, [outputs, inputs], a product of two rows with 768 outputs of 192
    inputs takes twice as long on a CPU, and a product of 64 rows takes a tenth more.

    Args:
        weight_OutIn: weights in the layout of checkpoints.
        bias_Out: bias that is added to each row, if any.
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
        """Multiply [rows, inputs] to [rows, outputs]."""
        if self._bags and x_RowsIn.shape[0] <= _MAX_BAG_ROWS:
            out = self._sum_bags(x_RowsIn)
            return out if self._bias_Out is None else out.add_(self._bias_Out)
        if self._bias_Out is None:
            return torch.mm(x_RowsIn, self._weight_InOut)
        return torch.addmm(self._bias_Out, x_RowsIn, self._weight_InOut)

    def over_last(self, x: Tensor) -> Tensor:
        """Multiply [..., inputs] to [..., outputs]."""
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
    """Return the weights' rows in each row's bag, which are all rows, and the start of each bag."""
    index = torch.arange(num_inputs, dtype=torch.int32).repeat(num_rows)
    return index, torch.arange(0, num_rows * num_inputs, num_inputs, dtype=torch.int32)
