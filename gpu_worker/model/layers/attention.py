"""Self-attention of a conformer layer: projections, writing of keys and values to pages, paged attention.

Shape legend: B rows, T frames of a row, D model width, H heads, E head width, R relative positions.

Source: NeMo `RelPositionMultiHeadAttention`; the sinusoids of `RelPositionalEncoding`.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from gpu_worker.kernels.reference.paged_attention_reference import AttentionGeometry
from gpu_worker.model.config import ModelConfig
from gpu_worker.model.layers.product import Product


class PagedAttention(Protocol):
    """The signature of attention kernels, as kernels/reference/paged_attention_reference.py defines it."""

    def __call__(
        self,
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
        """See `paged_attention` of the reference; a kernel that needs no geometry ignores it."""
        ...


@dataclass(frozen=True, slots=True)
class AttentionStep:
    """The inputs that all layers of a step share.

    `pages_BT` and `offsets_BT` are the page and offset of each frame's keys and values (in the spare page for
    frames past a row's count).
    """

    block_table_BM: Tensor
    start_B: Tensor
    num_frames_B: Tensor
    pages_BT: Tensor
    offsets_BT: Tensor
    geometry: AttentionGeometry | None


def page_positions(
    block_table_BM: Tensor,
    start_B: Tensor,
    num_frames_B: Tensor,
    num_frames: int,
    page_frames: int,
    spare_page: int,
) -> tuple[Tensor, Tensor]:
    """Return page and offset, int64 [B, T] each, of the next `num_frames` frames of every row."""
    step = torch.arange(num_frames, device=start_B.device)
    frame_BT = start_B.to(torch.int64).unsqueeze(1) + step
    logical = torch.div(frame_BT, page_frames, rounding_mode="floor")
    logical = torch.remainder(logical, block_table_BM.shape[1])
    pages = block_table_BM.to(torch.int64).gather(1, logical)
    pages = torch.where(step < num_frames_B.unsqueeze(1), pages, spare_page)
    return pages, torch.remainder(frame_BT, page_frames)


def relative_positions(d_model: int, left_frames: int, chunk_frames: int, device: torch.device) -> Tensor:
    """Return the sinusoids [R, D] of the distances ``-(chunk - 1) .. left + chunk - 1``, in float32."""
    distance = torch.arange(-(chunk_frames - 1), left_frames + chunk_frames, device=device)
    rates = torch.exp(
        torch.arange(0, d_model, 2, dtype=torch.float32, device=device) * -(math.log(10000.0) / d_model)
    )
    angles = distance.to(torch.float32).unsqueeze(1) * rates
    return torch.stack([angles.sin(), angles.cos()], dim=2).view(distance.shape[0], d_model)


class Attention:
    """One layer's attention; its relative positions are projected once, at construction."""

    def __init__(
        self,
        config: ModelConfig,
        weights: Mapping[str, Tensor],
        prefix: str,
        context: tuple[int, int],
        kernel: PagedAttention,
    ) -> None:
        self.num_heads = config.num_heads
        self.head_dim = config.head_dim
        self.left_frames, right = context
        self.chunk_frames = right + 1
        self._kernel = kernel
        names = ("linear_q", "linear_k", "linear_v")
        self._qkv = Product(
            torch.cat([weights[f"{prefix}.{name}.weight"] for name in names]),
            torch.cat([weights[f"{prefix}.{name}.bias"] for name in names]) if config.use_bias else None,
        )
        self._out = Product(
            weights[f"{prefix}.linear_out.weight"],
            weights[f"{prefix}.linear_out.bias"] if config.use_bias else None,
        )
        self._bias_u = weights[f"{prefix}.pos_bias_u"]
        self._bias_v = weights[f"{prefix}.pos_bias_v"]
        projection = weights[f"{prefix}.linear_pos.weight"]
        positions = relative_positions(config.d_model, self.left_frames, self.chunk_frames, projection.device)
        projected = positions.to(projection.dtype) @ projection.t()
        # The layout [H, E, R] is the one that the product with queries reads.
        projected_HER = projected.view(-1, self.num_heads, self.head_dim).permute(1, 2, 0).contiguous()
        self._positions_RHE = projected_HER.permute(2, 0, 1)

    def add_to(
        self, x_RowsD: Tensor, normed: Tensor, keys: Tensor, values: Tensor, step: AttentionStep
    ) -> None:
        """Add the attention's output to the residual stream in place.

        Args:
            x_RowsD: residual stream, [B * T, D], changed.
            normed: layer norm of `x_RowsD`.
            keys, values: the layer's pages, [N, W, H, E]; the step's frames are written first.
            step: positions in the pages, and the mask.
        """
        num_rows, num_frames = step.pages_BT.shape
        qkv = self._qkv(normed)
        qkv = qkv.view(num_rows, num_frames, 3, self.num_heads, self.head_dim)
        keys[step.pages_BT, step.offsets_BT] = qkv[:, :, 1]
        values[step.pages_BT, step.offsets_BT] = qkv[:, :, 2]
        attended = self._kernel(
            qkv[:, :, 0],
            keys,
            values,
            step.block_table_BM,
            step.start_B,
            step.num_frames_B,
            self._positions_RHE,
            self._bias_u,
            self._bias_v,
            chunk_frames=self.chunk_frames,
            left_frames=self.left_frames,
            geometry=step.geometry,
        )
        self._out.add_to(x_RowsD, attended.reshape(x_RowsD.shape))
