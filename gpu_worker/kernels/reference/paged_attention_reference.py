"""Relative-position attention over a paged key/value cache, in plain PyTorch.

It is the reference of the Triton kernel, and the implementation for CPU. A stream's keys and values are in
the pages of its block-table row, a ring of M pages of P frames: frame t is in logical page ``(t // P) % M``
at offset ``t % P``.

Shape legend: B rows, T frames of a row, H heads, D head width, N pages, P frames of a page, M pages of
a ring, K = M * P ring positions, R relative positions.

Source: the attention of Transformer-XL (Dai et al. 2019) as in NeMo's `RelPositionMultiHeadAttention`,
under its `chunked_limited` mask.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True, slots=True)
class AttentionGeometry:
    """The mask and the distances of queries and ring positions, which all layers of a step share.

    `distance_1BTK` are rows of the relative positions, `masked_BTK` is 0 where a key is visible and -inf
    elsewhere (0 throughout for frames past a row's count), `valid_BT` marks the valid frames; `all_valid`
    states that every frame is valid.
    """

    distance_1BTK: Tensor
    masked_1BTK: Tensor
    valid_BT11: Tensor
    all_valid: bool


def attention_geometry(
    num_frames: int,
    ring_frames: int,
    start_B: Tensor,
    num_frames_B: Tensor,
    *,
    chunk_frames: int,
    left_frames: int,
    all_valid: bool = False,
    dtype: torch.dtype = torch.float32,
) -> AttentionGeometry:
    """Compute the mask and the distances of a step.

    Args:
        num_frames: T.
        ring_frames: K, ring positions of a row.
        start_B, num_frames_B: see `paged_attention`.
        all_valid: whether every row has T valid frames, as the caller knows.
        dtype: type of the mask.
    """
    device = start_B.device
    start = start_B.to(torch.int64).unsqueeze(1)
    end = start + num_frames_B.to(torch.int64).unsqueeze(1)
    ring = torch.arange(ring_frames, device=device)
    # The newest frame that a ring position can hold; negative if the ring has not reached the position yet.
    key_BK = end - 1 - torch.remainder(end - 1 - ring, ring_frames)
    query_BT = start + torch.arange(num_frames, device=device)
    chunk_BT = torch.div(query_BT, chunk_frames, rounding_mode="floor") * chunk_frames
    first_BT = (chunk_BT - left_frames).clamp_(min=0)
    last_BT = torch.minimum(chunk_BT + chunk_frames, end) - 1
    key = key_BK.unsqueeze(1)
    seen = (key >= first_BT.unsqueeze(2)) & (key <= last_BT.unsqueeze(2))
    valid_BT = query_BT < end
    if not all_valid:
        # A row without any key has no softmax; the output of such a row is set to zero at the end.
        seen = seen | ~valid_BT.unsqueeze(2)
    masked = torch.zeros(seen.shape, dtype=dtype, device=device).masked_fill_(~seen, float("-inf"))
    num_positions = left_frames + 2 * chunk_frames - 1
    distance = (query_BT.unsqueeze(2) - key + (chunk_frames - 1)).clamp_(0, num_positions - 1)
    return AttentionGeometry(
        distance.unsqueeze(0), masked.unsqueeze(0), valid_BT.view(*valid_BT.shape, 1, 1), all_valid
    )


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
    geometry: AttentionGeometry | None = None,
) -> Tensor:
    """Attend from each row's new frames to its cached frames; their keys and values are in the pages already.

    Args:
        q_BTHD: queries of frames ``start .. start + T - 1``.
        k_pages_NPHD, v_pages_NPHD: the pages of one layer, of any strides.
        block_table_BM: integer pages of each row's ring, any valid page in places that are not taken yet.
        start_B: integer absolute encoder frame of the row's first one, a multiple of `chunk_frames`.
        num_frames_B: integer count of valid frames, at most T; together with T at most
            ``M * P - left_frames``.
        pos_RHD: projected relative positions; row r is the distance query - key of
            ``r - (chunk_frames - 1)``, R = left_frames + 2 * chunk_frames - 1.
        bias_u_HD, bias_v_HD: content and position biases.
        chunk_frames, left_frames: chunk and left context of the mask, in encoder frames.
        geometry: result of `attention_geometry` for these arguments, if the caller has it already.

    Returns:
        out_BTHD; frames past a row's count are zero.
    """
    num_rows, num_frames, num_heads, width = q_BTHD.shape
    ring_frames = block_table_BM.shape[1] * k_pages_NPHD.shape[1]
    if geometry is None:
        geometry = attention_geometry(
            num_frames,
            ring_frames,
            start_B,
            num_frames_B,
            chunk_frames=chunk_frames,
            left_frames=left_frames,
            dtype=q_BTHD.dtype,
        )
    k_RowsKD = _gather(k_pages_NPHD, block_table_BM)
    v_RowsKD = _gather(v_pages_NPHD, block_table_BM)
    scale = width**-0.5
    with_u = (q_BTHD + bias_u_HD).transpose(1, 2).reshape(num_rows * num_heads, num_frames, width)
    with_v = (q_BTHD + bias_v_HD).permute(2, 0, 1, 3).reshape(num_heads, num_rows * num_frames, width)
    by_distance = torch.bmm(with_v, pos_RHD.permute(1, 2, 0)).view(num_heads, num_rows, num_frames, -1)
    bias = by_distance.gather(3, geometry.distance_1BTK.expand(num_heads, -1, -1, -1))
    bias = torch.add(geometry.masked_1BTK, bias, alpha=scale)
    bias = bias.transpose(0, 1).reshape(num_rows * num_heads, num_frames, ring_frames)
    scores = torch.baddbmm(bias, with_u, k_RowsKD.transpose(1, 2), alpha=scale)
    weights = torch.softmax(scores, dim=-1, dtype=torch.float32).to(q_BTHD.dtype)
    out = torch.bmm(weights, v_RowsKD)
    out = out.view(num_rows, num_heads, num_frames, width).transpose(1, 2)
    return out if geometry.all_valid else out * geometry.valid_BT11


def _gather(pages_NPHD: Tensor, block_table_BM: Tensor) -> Tensor:
    """Return the rings of all rows, [B * H, K, D], without a second copy of rings of one page.

    On CPU, a single ring of a single page is not copied at all.
    """
    num_rows, num_pages = block_table_BM.shape
    _, page_frames, num_heads, width = pages_NPHD.shape
    if num_rows == num_pages == 1 and block_table_BM.device.type == "cpu":
        return pages_NPHD[int(block_table_BM)].transpose(0, 1)
    rings = pages_NPHD.transpose(1, 2).index_select(0, block_table_BM.reshape(-1))
    if num_pages > 1:
        rings = rings.view(num_rows, num_pages, num_heads, page_frames, width).transpose(1, 2)
    return rings.reshape(num_rows * num_heads, num_pages * page_frames, width)
