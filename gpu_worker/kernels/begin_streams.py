"""Reset of the prediction network's state for rows that begin a stream (Triton).

Shape suffixes and semantics as in the reference, `begin_streams_reference`.
"""

# mypy: disable-error-code="untyped-decorator"

from __future__ import annotations

import triton
import triton.language as tl
from torch import Tensor


@triton.jit(do_not_specialize=["num_slots"])
def _begin_streams_kernel(  # type: ignore[no-untyped-def]
    hidden_ptr,
    cell_ptr,
    output_ptr,
    node_ptr,
    slots_ptr,
    start_ptr,
    begin_ptr,
    begin_cell_ptr,
    begin_output_ptr,
    num_slots,
    LAYERS: tl.constexpr,
    H: tl.constexpr,
    J: tl.constexpr,
    BLOCK: tl.constexpr,
):
    stream = tl.program_id(0)
    if tl.load(start_ptr + stream) == 0:
        slot = tl.load(slots_ptr + stream).to(tl.int64)
        cols = tl.arange(0, BLOCK)
        for layer in tl.static_range(LAYERS):
            row = (layer * num_slots + slot) * H
            hidden = tl.load(begin_ptr + layer * H + cols, mask=cols < H)
            tl.store(hidden_ptr + row + cols, hidden, mask=cols < H)
            cell = tl.load(begin_cell_ptr + layer * H + cols, mask=cols < H)
            tl.store(cell_ptr + row + cols, cell, mask=cols < H)
        output = tl.load(begin_output_ptr + cols, mask=cols < J)
        tl.store(output_ptr + slot * J + cols, output, mask=cols < J)
        tl.store(node_ptr + 2 * slot + tl.arange(0, 2), tl.zeros((2,), tl.int32))


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
    """Compute the reference's function. Integers are int32; all tensors are contiguous."""
    layers, num_slots, width = hidden_LSH.shape
    _begin_streams_kernel[(slots_B.shape[0],)](
        hidden_LSH,
        cell_LSH,
        output_SJ,
        node_SM,
        slots_B,
        start_B,
        begin_LH,
        begin_cell_LH,
        begin_output_J,
        num_slots,
        LAYERS=layers,
        H=width,
        J=output_SJ.shape[1],
        BLOCK=triton.next_power_of_2(max(width, output_SJ.shape[1])),
        num_warps=4,
    )
