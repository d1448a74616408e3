"""A matrix product with weights as the library multiplies few rows by them soonest."""

from __future__ import annotations

import torch
from torch import Tensor


class Product:
    """A linear layer that widens its input.

    Its weights stand as [inputs, outputs]. As [outputs, inputs], in which checkpoints have them, a product of
    two rows with 768 outputs of 192 inputs takes twice as long on a CPU, and one of 64 a tenth more.
    """

    def __init__(self, weight_OutIn: Tensor, bias_Out: Tensor | None) -> None:
        self._weight_InOut = weight_OutIn.t().contiguous()
        self._bias_Out = bias_Out

    def __call__(self, x_RowsIn: Tensor) -> Tensor:
        if self._bias_Out is None:
            return torch.mm(x_RowsIn, self._weight_InOut)
        return torch.addmm(self._bias_Out, x_RowsIn, self._weight_InOut)
