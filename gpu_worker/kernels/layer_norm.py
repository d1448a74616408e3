"""Layer norm, and the two norms between Conformer layers in one pass (Triton).

Shape suffixes: M rows (streams x frames), D width of the model.  Reference: `layer_norm_reference`.
"""

# mypy: disable-error-code="untyped-decorator"

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor


@triton.jit
def _normalize(x, weight_ptr, bias_ptr, cols, eps, D: tl.constexpr):  # type: ignore[no-untyped-def]
    mask = cols < D
    mean = tl.sum(x, axis=1) / D
    centred = tl.where(mask[None, :], x - mean[:, None], 0.0)
    variance = tl.sum(centred * centred, axis=1) / D
    weight = tl.load(weight_ptr + cols, mask=mask, other=0.0).to(tl.float32)
    bias = tl.load(bias_ptr + cols, mask=mask, other=0.0).to(tl.float32)
    return centred * tl.rsqrt(variance + eps)[:, None] * weight[None, :] + bias[None, :]


@triton.jit(do_not_specialize=["num_rows"])
def _layer_norm_kernel(  # type: ignore[no-untyped-def]
    x_ptr,
    layer_ptr,
    out_ptr,
    weight_ptr,
    bias_ptr,
    next_weight_ptr,
    next_bias_ptr,
    eps,
    num_rows,
    D: tl.constexpr,
    TWO_NORMS: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_D: tl.constexpr,
):
    rows = tl.program_id(0) * BLOCK_M + tl.arange(0, BLOCK_M)
    cols = tl.arange(0, BLOCK_D)
    mask = (rows < num_rows)[:, None] & (cols < D)[None, :]
    offsets = rows.to(tl.int64)[:, None] * D + cols[None, :]
    x = tl.load(x_ptr + offsets, mask=mask, other=0.0).to(tl.float32)
    y = _normalize(x, weight_ptr, bias_ptr, cols, eps, D)
    if TWO_NORMS:
        # Rounded as the residual is, so that both norms see the same layer output.
        layer = y.to(layer_ptr.dtype.element_ty)
        tl.store(layer_ptr + offsets, layer, mask=mask)
        y = _normalize(layer.to(tl.float32), next_weight_ptr, next_bias_ptr, cols, eps, D)
    tl.store(out_ptr + offsets, y, mask=mask)


def _launch(
    x_MD: Tensor, layer_MD: Tensor, weights: tuple[Tensor, Tensor, Tensor, Tensor], eps: float, two: bool
) -> Tensor:
    num_rows, width = x_MD.shape
    out_MD = torch.empty_like(x_MD)
    block_d = triton.next_power_of_2(width)
    # About 16 elements per thread: enough loads in flight, and few enough registers for full occupancy.
    block_m = max(1, 2048 // block_d)
    _layer_norm_kernel[(triton.cdiv(num_rows, block_m),)](
        x_MD,
        layer_MD,
        out_MD,
        *weights,
        eps,
        num_rows,
        D=width,
        TWO_NORMS=two,
        BLOCK_M=block_m,
        BLOCK_D=block_d,
        num_warps=4,
    )
    return out_MD


def layer_norm(x_MD: Tensor, weight_D: Tensor, bias_D: Tensor, eps: float) -> Tensor:
    """Compute the reference's function; `x_MD` is contiguous."""
    return _launch(x_MD, x_MD, (weight_D, bias_D, weight_D, bias_D), eps, two=False)


def two_layer_norms(
    x_MD: Tensor, weight_D: Tensor, bias_D: Tensor, next_weight_D: Tensor, next_bias_D: Tensor, eps: float
) -> tuple[Tensor, Tensor]:
    """Compute the reference's function; `x_MD` is contiguous and replaced in place by the layer's output."""
    out_MD = _launch(x_MD, x_MD, (weight_D, bias_D, next_weight_D, next_bias_D), eps, two=True)
    return x_MD, out_MD
