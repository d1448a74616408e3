"""Gathers a step's samples from the slots' rings, which may be pinned host memory (Triton).

The host writes received audio into a stream's ring and passes only the sample numbers of each row. The device
fetches the rows over the bus itself, so the host copies no samples for a step.  Shape suffixes and semantics
as in the reference, `gather_samples_reference`.
"""

# mypy: disable-error-code="untyped-decorator"

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor


@triton.jit(do_not_specialize=["num_columns", "ring_samples"])
def _gather_samples_kernel(  # type: ignore[no-untyped-def]
    float_ring_ptr,
    pcm16_ring_ptr,
    slots_ptr,
    is_float_ptr,
    first_ptr,
    end_ptr,
    out_ptr,
    num_columns,
    ring_samples,
    BLOCK: tl.constexpr,
):
    stream = tl.program_id(0).to(tl.int64)
    slot = tl.load(slots_ptr + stream).to(tl.int64)
    column = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    sample = tl.load(first_ptr + stream) + column
    inside = (sample >= 0) & (sample < tl.load(end_ptr + stream)) & (column < num_columns)
    at = slot * ring_samples
    # One of the two loads is masked out, because a slot's bytes are of one type.
    is_float = tl.zeros_like(column) + tl.load(is_float_ptr + stream) != 0
    float_value = tl.load(float_ring_ptr + at + sample % ring_samples, mask=inside & is_float, other=0.0)
    pcm16_value = tl.load(pcm16_ring_ptr + 2 * at + sample % ring_samples, mask=inside & ~is_float, other=0)
    value = tl.where(is_float, float_value, pcm16_value.to(tl.float32) * (1.0 / 32768.0))
    tl.store(out_ptr + stream * num_columns + column, value, mask=column < num_columns)


def gather_samples(
    ring_SC: Tensor, slots_B: Tensor, is_float_B: Tensor, first_B: Tensor, end_B: Tensor, num_columns: int
) -> Tensor:
    """Compute the reference's function. Integers are int32; `ring_SC` is contiguous or pinned."""
    num_streams = slots_B.shape[0]
    out_BN = torch.empty((num_streams, num_columns), dtype=ring_SC.dtype, device=slots_B.device)
    _gather_samples_kernel[(num_streams, triton.cdiv(num_columns, 1024))](
        ring_SC,
        ring_SC.view(torch.int16),
        slots_B,
        is_float_B,
        first_B,
        end_B,
        out_BN,
        num_columns,
        ring_SC.shape[1],
        BLOCK=1024,
        num_warps=4,
    )
    return out_BN
