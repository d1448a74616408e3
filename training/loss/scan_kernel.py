"""`scan_frames` as one Triton kernel: one program for each row goes through all its frames.

In plain PyTorch each frame is two small launches, some hundred for a batch, and the lattice takes longer than
the encoder. Reference: `scan.py`.
"""

# mypy: disable-error-code="untyped-decorator"

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor


@triton.jit
def _log_add(a, b):  # type: ignore[no-untyped-def]
    top = tl.maximum(a, b)
    return top + tl.log(tl.exp(a - top) + tl.exp(b - top))


@triton.jit(do_not_specialize=["num_frames", "num_rows", "width"])
def _scan_kernel(  # type: ignore[no-untyped-def]
    first_ptr, into_ptr, out_ptr, num_frames, num_rows, width, BLOCK: tl.constexpr
):
    row = tl.program_id(0)
    column = tl.arange(0, BLOCK)
    inside = column < width
    # Columns past the width come after all others in the sum, so they do not change the others.
    y = tl.load(first_ptr + row * width + column, mask=inside, other=-1e30)
    y = tl.associative_scan(y, 0, _log_add)
    at = row.to(tl.int64) * width + column
    tl.store(out_ptr + at, y, mask=inside)
    for _ in range(1, num_frames):
        at += num_rows.to(tl.int64) * width
        y = tl.associative_scan(y + tl.load(into_ptr + at, mask=inside, other=0.0), 0, _log_add)
        tl.store(out_ptr + at, y, mask=inside)


def scan_frames(first_NU: Tensor, into_TNU: Tensor) -> Tensor:
    """Compute the reference's function; both arguments are contiguous float32 on one device."""
    num_frames, num_rows, width = into_TNU.shape
    out_TNU = torch.empty_like(into_TNU)
    block = max(16, triton.next_power_of_2(width))
    _scan_kernel[(num_rows,)](
        first_NU,
        into_TNU,
        out_TNU,
        num_frames,
        num_rows,
        width,
        BLOCK=block,
        num_warps=1 if block <= 128 else 4,
    )
    return out_TNU
