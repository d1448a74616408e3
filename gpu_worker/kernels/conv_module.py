"""The middle of a Conformer's convolution module in one kernel with an in-place cache (Triton).

GLU, causal depthwise convolution, layer norm and SiLU.  Shape suffixes as in the reference,
`conv_module_reference`.
"""

# mypy: disable-error-code="untyped-decorator"

from __future__ import annotations

import triton
import triton.language as tl
from torch import Tensor


@triton.jit
def _past_glu(cache_row, gates_rows, start, frame, cols, HISTORY: tl.constexpr, D: tl.constexpr):  # type: ignore[no-untyped-def]
    # GLU output of a frame, counted from the step's first one: earlier frames come from the cache, others
    # from the gates' first half.  A thread reads only what it wrote itself, so no barrier is needed.
    at = tl.zeros_like(cols) + frame
    goes_on = tl.zeros_like(cols) + start > 0
    cached = tl.load(cache_row + (frame + HISTORY) * D, mask=(cols < D) & (at < 0) & goes_on, other=0.0)
    fresh = tl.load(gates_rows + frame * 2 * D, mask=(cols < D) & (at >= 0), other=0.0)
    return cached.to(tl.float32) + fresh.to(tl.float32)


@triton.jit(do_not_specialize=["num_rows"])
def _glu_depthwise_conv_kernel(  # type: ignore[no-untyped-def]
    gates_ptr,
    cache_ptr,
    slots_ptr,
    start_ptr,
    num_frames_ptr,
    weight_ptr,
    conv_bias_ptr,
    norm_weight_ptr,
    norm_bias_ptr,
    out_ptr,
    num_rows,
    eps,
    D: tl.constexpr,
    TAPS: tl.constexpr,
    HAS_CONV_BIAS: tl.constexpr,
    BLOCK_D: tl.constexpr,
):
    # One program for each stream: the window slides over its frames in registers, with all channels at once
    # because the norm is over channels.
    stream = tl.program_id(0).to(tl.int64)
    slot = tl.load(slots_ptr + stream).to(tl.int64)
    start = tl.load(start_ptr + stream)
    num_frames = tl.load(num_frames_ptr + stream)
    cols = tl.arange(0, BLOCK_D)
    mask = cols < D
    history: tl.constexpr = TAPS - 1
    cache_row = cache_ptr + slot * history * D + cols
    norm_weight = tl.load(norm_weight_ptr + cols, mask=mask, other=0.0).to(tl.float32)
    norm_bias = tl.load(norm_bias_ptr + cols, mask=mask, other=0.0).to(tl.float32)
    gates_rows = gates_ptr + stream * num_rows * 2 * D + cols
    for frame in range(num_frames):
        value = tl.load(gates_rows + frame * 2 * D, mask=mask, other=0.0).to(tl.float32)
        gate = tl.load(gates_rows + frame * 2 * D + D, mask=mask, other=0.0).to(tl.float32)
        # Rounded like the cache, so that a frame has the same value in this and a later step; stored in the
        # place of `value`, for the taps of the next frames.
        glu = (value * tl.sigmoid(gate)).to(gates_ptr.dtype.element_ty)
        tl.store(gates_rows + frame * 2 * D, glu, mask=mask)
        last_weight = tl.load(weight_ptr + history * D + cols, mask=mask, other=0.0).to(tl.float32)
        conv = glu.to(tl.float32) * last_weight
        if HAS_CONV_BIAS:
            conv += tl.load(conv_bias_ptr + cols, mask=mask, other=0.0).to(tl.float32)
        for tap in tl.static_range(history):
            past = _past_glu(cache_row, gates_rows, start, frame + tap - history, cols, history, D)
            weight = tl.load(weight_ptr + tap * D + cols, mask=mask, other=0.0).to(tl.float32)
            conv += past * weight
        mean = tl.sum(conv, axis=0) / D
        centred = tl.where(mask, conv - mean, 0.0)
        variance = tl.sum(centred * centred, axis=0) / D
        norm = centred * tl.rsqrt(variance + eps) * norm_weight + norm_bias
        out = norm * tl.sigmoid(norm)
        tl.store(out_ptr + (stream * num_rows + frame) * D + cols, out, mask=mask)
    if num_frames > 0:
        # Ascending, so that every row is read before it is overwritten.
        for row in tl.static_range(history):
            past = _past_glu(cache_row, gates_rows, start, num_frames + row - history, cols, history, D)
            tl.store(cache_row + row * D, past, mask=mask)
    for frame in range(num_frames, num_rows):
        zeros = tl.zeros((BLOCK_D,), dtype=tl.float32)
        tl.store(out_ptr + (stream * num_rows + frame) * D + cols, zeros, mask=mask)


def glu_depthwise_conv(
    gates_BTE: Tensor,
    cache_SKD: Tensor,
    slots_B: Tensor,
    start_B: Tensor,
    num_frames_B: Tensor,
    weight_KD: Tensor,
    conv_bias_D: Tensor | None,
    norm_weight_D: Tensor,
    norm_bias_D: Tensor,
    eps: float,
) -> Tensor:
    """Compute the reference's function. `gates_BTE` is overwritten; it has the type of `cache_SKD`.

    All tensors are contiguous. A row without a valid frame does not change its slot.
    """
    num_streams, num_rows, _ = gates_BTE.shape
    taps, width = weight_KD.shape
    out_BTD = gates_BTE.new_empty((num_streams, num_rows, width))
    block_d = triton.next_power_of_2(width)
    _glu_depthwise_conv_kernel[(num_streams,)](
        gates_BTE,
        cache_SKD,
        slots_B,
        start_B,
        num_frames_B,
        weight_KD,
        conv_bias_D if conv_bias_D is not None else weight_KD,
        norm_weight_D,
        norm_bias_D,
        out_BTD,
        num_rows,
        eps,
        D=width,
        TAPS=taps,
        HAS_CONV_BIAS=conv_bias_D is not None,
        BLOCK_D=block_d,
        num_warps=max(1, min(8, block_d // 128)),
    )
    return out_BTD
