"""Relative-position attention over a paged key/value cache (Triton).

Follows Transformer-XL scores as NeMo's `RelPositionMultiHeadAttention` computes them,
((q + u) k + (q + v) p) / sqrt(D), for chunked-limited context.  Shape suffixes: B streams of the step,
T query frames, H heads, D width of a head, N pages, P frames of a page, M pages of a stream's ring,
R relative distances.  Reference: `paged_attention_reference`.

The positional term is a matrix product with a constant, so the matrix library computes it for all distances
at once ([H, B T, D] x [H, D, R]). The kernel picks the distances that it needs.
"""

# mypy: disable-error-code="untyped-decorator"

from __future__ import annotations

import math

import torch
import triton
import triton.language as tl
from torch import Tensor


@triton.jit(do_not_specialize=["stride_table", "num_pages"])
def _write_kv_kernel(  # type: ignore[no-untyped-def]
    k_ptr,
    v_ptr,
    k_pages_ptr,
    v_pages_ptr,
    block_table_ptr,
    start_ptr,
    num_frames_ptr,
    stride_b,
    stride_t,
    stride_table,
    stride_n,
    stride_p,
    stride_h,
    num_pages,
    P: tl.constexpr,
    H: tl.constexpr,
    D: tl.constexpr,
    BLOCK_E: tl.constexpr,
):
    stream = tl.program_id(0).to(tl.int64)
    row = tl.program_id(1)
    if row < tl.load(num_frames_ptr + stream):
        frame = tl.load(start_ptr + stream) + row
        page = tl.load(block_table_ptr + stream * stride_table + (frame // P) % num_pages).to(tl.int64)
        source = stream * stride_b + row * stride_t
        cols = tl.arange(0, BLOCK_E)
        mask = cols < H * D
        target = page * stride_n + (frame % P) * stride_p + (cols // D) * stride_h + cols % D
        tl.store(k_pages_ptr + target, tl.load(k_ptr + source + cols, mask=mask), mask=mask)
        tl.store(v_pages_ptr + target, tl.load(v_ptr + source + cols, mask=mask), mask=mask)


@triton.jit(
    do_not_specialize=["stride_table", "stride_bd_h", "stride_bd_m", "num_rows", "num_pages", "num_distances"]
)
def _paged_attention_kernel(  # type: ignore[no-untyped-def]
    q_ptr,
    k_pages_ptr,
    v_pages_ptr,
    block_table_ptr,
    start_ptr,
    num_frames_ptr,
    bd_ptr,
    v_bias_ptr,
    u_ptr,
    out_ptr,
    stride_qb,
    stride_qt,
    stride_table,
    stride_n,
    stride_p,
    stride_h,
    stride_bd_h,
    stride_bd_m,
    num_rows,
    num_pages,
    num_distances,
    scale,
    H: tl.constexpr,
    D: tl.constexpr,
    P: tl.constexpr,
    CHUNK: tl.constexpr,
    LEFT: tl.constexpr,
    BLOCK_T: tl.constexpr,
    BLOCK_K: tl.constexpr,
    BLOCK_D: tl.constexpr,
    PRECISION: tl.constexpr,
):
    # One program for each (stream, head). Heads of a stream are neighbours, because a frame's keys of all
    # heads are contiguous in memory.
    stream = (tl.program_id(0) // H).to(tl.int64)
    head = tl.program_id(0) % H
    start = tl.load(start_ptr + stream)
    num_frames = tl.load(num_frames_ptr + stream)
    first_row = tl.program_id(1) * BLOCK_T
    cols = tl.arange(0, BLOCK_D)
    col_mask = cols < D
    row = first_row + tl.arange(0, BLOCK_T)
    frame = start + row
    valid = row < num_frames
    chunk = frame // CHUNK
    oldest = tl.maximum(chunk * CHUNK - LEFT, 0)
    newest = tl.minimum((chunk + 1) * CHUNK, start + num_frames)

    q_offsets = stream * stride_qb + row[:, None] * stride_qt + head * D + cols[None, :]
    q_mask = valid[:, None] & col_mask[None, :]
    q = tl.load(q_ptr + q_offsets, mask=q_mask, other=0.0)
    u = tl.load(u_ptr + head * D + cols, mask=col_mask, other=0.0)
    q = (q.to(tl.float32) + u.to(tl.float32)[None, :]).to(k_pages_ptr.dtype.element_ty)
    bd_rows = bd_ptr + head * stride_bd_h + (stream * num_rows + row) * stride_bd_m

    best = tl.full((BLOCK_T,), -1e30, dtype=tl.float32)
    total = tl.zeros((BLOCK_T,), dtype=tl.float32)
    out = tl.zeros((BLOCK_T, BLOCK_D), dtype=tl.float32)
    first_chunk = (start + first_row) // CHUNK
    last_row = tl.minimum(first_row + BLOCK_T, num_frames) - 1
    first_key = tl.maximum(first_chunk * CHUNK - LEFT, 0)
    last_key = tl.minimum(((start + last_row) // CHUNK + 1) * CHUNK, start + num_frames)
    # A block of rows past the stream's frames reads no key.
    last_key = tl.where(first_row < num_frames, last_key, first_key)
    for key_0 in range(first_key, last_key, BLOCK_K):
        key = key_0 + tl.arange(0, BLOCK_K)
        key_mask = key < last_key
        page = tl.load(
            block_table_ptr + stream * stride_table + (key // P) % num_pages, mask=key_mask, other=0
        ).to(tl.int64)
        kv_rows = page * stride_n + (key % P) * stride_p + head * stride_h
        kv_offsets = kv_rows[:, None] + cols[None, :]
        kv_mask = key_mask[:, None] & col_mask[None, :]
        k = tl.load(k_pages_ptr + kv_offsets, mask=kv_mask, other=0.0)
        v = tl.load(v_pages_ptr + kv_offsets, mask=kv_mask, other=0.0)
        seen = (key[None, :] >= oldest[:, None]) & (key[None, :] < newest[:, None]) & valid[:, None]
        distance = frame[:, None] - key[None, :] + (CHUNK - 1)
        position = tl.load(bd_rows[:, None] + distance, mask=seen, other=0.0).to(tl.float32)
        position += tl.load(v_bias_ptr + head * num_distances + distance, mask=seen, other=0.0)
        scores = tl.dot(q, tl.trans(k), input_precision=PRECISION)
        scores = tl.where(seen, (scores + position) * scale, -1e30)
        new_best = tl.maximum(best, tl.max(scores, axis=1))
        shrink = tl.exp(best - new_best)
        weights = tl.where(seen, tl.exp(scores - new_best[:, None]), 0.0)
        total = total * shrink + tl.sum(weights, axis=1)
        out = out * shrink[:, None]
        out = tl.dot(weights.to(v.dtype), v, out, input_precision=PRECISION)
        best = new_best
    out = out / tl.where(total > 0, total, 1.0)[:, None]
    out_offsets = (stream * num_rows + row)[:, None] * (H * D) + head * D + cols[None, :]
    tl.store(out_ptr + out_offsets, out, mask=(row < num_rows)[:, None] & col_mask[None, :])


def write_kv(
    k_BTHD: Tensor,
    v_BTHD: Tensor,
    k_pages_NPHD: Tensor,
    v_pages_NPHD: Tensor,
    block_table_BM: Tensor,
    start_B: Tensor,
    num_frames_B: Tensor,
) -> None:
    """Write the step's keys and values into their pages; rows past `num_frames_B` are dropped.

    `k_BTHD` and `v_BTHD` may be slices of one projection: equal strides, the last two dimensions dense.
    Both pools have the same strides, the last dimension dense.
    """
    num_streams, num_rows, heads, width = k_BTHD.shape
    _write_kv_kernel[(num_streams, num_rows)](
        k_BTHD,
        v_BTHD,
        k_pages_NPHD,
        v_pages_NPHD,
        block_table_BM,
        start_B,
        num_frames_B,
        k_BTHD.stride(0),
        k_BTHD.stride(1),
        block_table_BM.stride(0),
        *k_pages_NPHD.stride()[:3],
        block_table_BM.shape[1],
        P=k_pages_NPHD.shape[1],
        H=heads,
        D=width,
        BLOCK_E=triton.next_power_of_2(heads * width),
        num_warps=4,
    )


def attend(
    q_BTHD: Tensor,
    k_pages_NPHD: Tensor,
    v_pages_NPHD: Tensor,
    block_table_BM: Tensor,
    start_B: Tensor,
    num_frames_B: Tensor,
    pos_HDR: Tensor,
    v_bias_HR: Tensor,
    bias_u_HD: Tensor,
    *,
    chunk_frames: int,
    left_frames: int,
    block_k: int = 16,
    num_warps: int = 1,
    num_stages: int = 2,
) -> Tensor:
    """Compute `paged_attention` with constants that were computed before.

    pos_HDR: projected positions, distances last; v_bias_HR: `bias_v_HD` times them, float32.
    """
    num_streams, num_rows, heads, width = q_BTHD.shape
    # A view: streams and frames of a projection have one stride.
    q_HMD = q_BTHD.as_strided((heads, num_streams * num_rows, width), (q_BTHD.stride(2), q_BTHD.stride(1), 1))
    bd_HMR = torch.bmm(q_HMD, pos_HDR)
    out_BTHD = q_BTHD.new_empty((num_streams, num_rows, heads, width))
    block_t = min(64, max(16, triton.next_power_of_2(num_rows)))
    _paged_attention_kernel[(num_streams * heads, triton.cdiv(num_rows, block_t))](
        q_BTHD,
        k_pages_NPHD,
        v_pages_NPHD,
        block_table_BM,
        start_B,
        num_frames_B,
        bd_HMR,
        v_bias_HR,
        bias_u_HD,
        out_BTHD,
        q_BTHD.stride(0),
        q_BTHD.stride(1),
        block_table_BM.stride(0),
        *k_pages_NPHD.stride()[:3],
        bd_HMR.stride(0),
        bd_HMR.stride(1),
        num_rows,
        block_table_BM.shape[1],
        pos_HDR.shape[2],
        1.0 / math.sqrt(width),
        H=heads,
        D=width,
        P=k_pages_NPHD.shape[1],
        CHUNK=chunk_frames,
        LEFT=left_frames,
        BLOCK_T=block_t,
        BLOCK_K=block_k,
        BLOCK_D=max(16, triton.next_power_of_2(width)),
        PRECISION="ieee" if q_BTHD.dtype == torch.float32 else "tf32",
        num_warps=num_warps,
        num_stages=num_stages,
    )
    return out_BTHD


def position_bias(pos_RHD: Tensor, bias_v_HD: Tensor) -> tuple[Tensor, Tensor]:
    """Return the constants that `attend` takes for projected positions: pos_HDR and v_bias_HR."""
    pos_HDR = pos_RHD.permute(1, 2, 0).contiguous()
    v_bias_HR = torch.einsum("hd,hdr->hr", bias_v_HD.float(), pos_HDR.float()).contiguous()
    return pos_HDR, v_bias_HR


def paged_attention(
    q_BTHD: Tensor,
    k_pages_NPHD: Tensor,
    v_pages_NPHD: Tensor,
    block_table_BM: Tensor,
    start_B: Tensor,
    num_frames_B: Tensor,
    pos_RHD: Tensor,
    bias_u_HD: Tensor,
    bias_v_HD: Tensor,
    *,
    chunk_frames: int,
    left_frames: int,
) -> Tensor:
    """Compute the step's attention over its streams' pages, as in `paged_attention_reference`.

    Keys and values of the step's own frames must be written before (`write_kv`). `q_BTHD` is dense over its
    last two dimensions, and its streams are T rows apart.
    """
    pos_HDR, v_bias_HR = position_bias(pos_RHD, bias_v_HD)
    return attend(
        q_BTHD,
        k_pages_NPHD,
        v_pages_NPHD,
        block_table_BM,
        start_B,
        num_frames_B,
        pos_HDR,
        v_bias_HR,
        bias_u_HD,
        chunk_frames=chunk_frames,
        left_frames=left_frames,
    )
