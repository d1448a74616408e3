"""Matrix products with weights, by the method that is fastest on a CPU.

One stream has two rows in a step, a chunk of 160 ms. The time of such a product is the time of reading its
weights from memory, and weights of 16 bits take half of it. The weights of the bundled checkpoint, as of many
others, are float16 numbers. FBGEMM keeps them as such and widens them to float32 where it multiplies. All
products and sums are float32, as they are with weights of 32 bits, so nothing more is rounded. FBGEMM sums up
each row in the same order, so a row comes out the same to the last bit whatever the number of rows.
"""

from __future__ import annotations

import warnings
from typing import Final

import torch
from torch import Tensor

# FBGEMM multiplies in one thread. Where PyTorch has more threads, its own library takes what has more rows.
_MAX_ROWS_OF_A_THREAD: Final = 16


class Product:
    """A linear layer.

    Weights of 32 bits with more outputs than inputs are laid out as [inputs, outputs]. In the layout of
    checkpoints, [outputs, inputs], a product of two rows with 768 outputs of 192 inputs takes twice as long
    on a CPU, and a product of 64 rows takes a tenth more.

    Args:
        weight_OutIn: weights in the layout of checkpoints.
        bias_Out: bias that is added to each row, if any.
        scale: factor of weights and bias, a power of two.
    """

    def __init__(self, weight_OutIn: Tensor, bias_Out: Tensor | None = None, *, scale: float = 1.0) -> None:
        num_outputs, num_inputs = weight_OutIn.shape
        self._scale = scale
        self._bias_Out = None if bias_Out is None else bias_Out * scale
        self._halves = _packed_halves(weight_OutIn)
        self._weight_InOut: Tensor | None = None
        if self._halves is None or torch.get_num_threads() > 1:
            self._weight_InOut = (weight_OutIn if scale == 1.0 else weight_OutIn * scale).t()
            if num_outputs > num_inputs:
                self._weight_InOut = self._weight_InOut.contiguous()

    def __call__(self, x_RowsIn: Tensor) -> Tensor:
        """Multiply [rows, inputs] to [rows, outputs]."""
        weight = self._weight_for(x_RowsIn)
        if weight is None:
            out = self._by_halves(x_RowsIn)
            out = out if self._scale == 1.0 else out.mul_(self._scale)
            return out if self._bias_Out is None else out.add_(self._bias_Out)
        if self._bias_Out is None:
            return torch.mm(x_RowsIn, weight)
        return torch.addmm(self._bias_Out, x_RowsIn, weight)

    def over_last(self, x: Tensor) -> Tensor:
        """Multiply [..., inputs] to [..., outputs]."""
        return self(x.reshape(-1, x.shape[-1])).view(*x.shape[:-1], -1)

    def add_to(self, total_RowsOut: Tensor, x_RowsIn: Tensor) -> None:
        """Add the product to `total_RowsOut` in place."""
        weight = self._weight_for(x_RowsIn)
        if weight is None:
            total_RowsOut.add_(self._by_halves(x_RowsIn), alpha=self._scale)
        else:
            total_RowsOut.addmm_(x_RowsIn, weight)
        if self._bias_Out is not None:
            total_RowsOut.add_(self._bias_Out)

    def _weight_for(self, x_RowsIn: Tensor) -> Tensor | None:
        """Return the weights of 32 bits, or None where the rows are multiplied with halves."""
        if self._halves is not None and x_RowsIn.shape[0] <= _MAX_ROWS_OF_A_THREAD:
            return None
        return self._weight_InOut

    def _by_halves(self, x_RowsIn: Tensor) -> Tensor:
        assert self._halves is not None
        return torch.fbgemm_linear_fp16_weight_fp32_activation(x_RowsIn, self._halves, None)


def _packed_halves(weight_OutIn: Tensor) -> Tensor | None:
    """Return the weights as FBGEMM's matrix of float16; None where they are not float16 numbers all."""
    if weight_OutIn.device.type != "cpu" or weight_OutIn.dtype != torch.float32 or not _can_pack():
        return None
    if not torch.equal(weight_OutIn.half().float(), weight_OutIn) or not bool(weight_OutIn.isfinite().all()):
        return None
    with warnings.catch_warnings():
        # The first call of each function says that PyTorch will drop it one day; Product goes on without.
        warnings.simplefilter("ignore", UserWarning)
        halves: Tensor = torch.fbgemm_pack_gemm_matrix_fp16(weight_OutIn.contiguous())
        row = weight_OutIn.new_zeros(1, weight_OutIn.shape[1])
        torch.fbgemm_linear_fp16_weight_fp32_activation(row, halves, None)
    return halves


def _can_pack() -> bool:
    """Return whether this PyTorch has FBGEMM, for this processor."""
    return "fbgemm" in torch.backends.quantized.supported_engines and hasattr(
        torch, "fbgemm_pack_gemm_matrix_fp16"
    )
