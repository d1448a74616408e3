"""Convolutions of the subsampling, channels last, without im2col (Triton).

Shape suffixes and the arithmetic of windows as in the reference, `subsampling_reference`.
"""

# mypy: disable-error-code="untyped-decorator"

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor


@triton.jit(do_not_specialize=["window", "num_out", "num_pixels"])
def _conv_and_depthwise_kernel(  # type: ignore[no-untyped-def]
    mel_ptr,
    start_ptr,
    mel_end_ptr,
    conv_weight_ptr,
    conv_bias_ptr,
    dw_weight_ptr,
    dw_bias_ptr,
    out_ptr,
    window,
    num_out,
    num_pixels,
    N: tl.constexpr,
    F1: tl.constexpr,
    F2: tl.constexpr,
    C: tl.constexpr,
    BLOCK_P: tl.constexpr,
    BLOCK_C: tl.constexpr,
):
    # A pixel is one (stream, second-stage frame, second-stage bin).  The first stage is computed again
    # for each of the nine taps: 2.25 times the arithmetic, and its large output never reaches memory.
    pixel = tl.program_id(0) * BLOCK_P + tl.arange(0, BLOCK_P)
    in_range = pixel < num_pixels
    bin2 = pixel % F2
    frame2 = (pixel // F2) % num_out
    stream = (pixel // (F2 * num_out)).to(tl.int64)
    channel = tl.program_id(1) * BLOCK_C + tl.arange(0, BLOCK_C)
    channel_mask = channel < C
    start = tl.load(start_ptr + stream, mask=in_range, other=0)
    mel_end = tl.load(mel_end_ptr + stream, mask=in_range, other=0)
    end1 = mel_end // 2 + 1
    conv_bias = tl.load(conv_bias_ptr + channel, mask=channel_mask, other=0.0).to(tl.float32)
    dw_bias = tl.load(dw_bias_ptr + channel, mask=channel_mask, other=0.0).to(tl.float32)
    out = tl.zeros((BLOCK_P, BLOCK_C), dtype=tl.float32) + dw_bias[None, :]
    for tap_t in tl.static_range(3):
        for tap_f in tl.static_range(3):
            frame1 = 2 * frame2 + tap_t
            bin1 = 2 * bin2 + tap_f - 2
            abs1 = 4 * start - 6 + frame1
            inside = in_range & (abs1 >= 0) & (abs1 < end1) & (bin1 >= 0) & (bin1 < F1)
            hidden = tl.zeros((BLOCK_P, BLOCK_C), dtype=tl.float32) + conv_bias[None, :]
            for k_t in tl.static_range(3):
                for k_f in tl.static_range(3):
                    frame0 = 2 * frame1 + k_t
                    bin0 = 2 * bin1 + k_f - 2
                    abs0 = 8 * start - 14 + frame0
                    here = inside & (abs0 >= 0) & (abs0 < mel_end) & (bin0 >= 0) & (bin0 < N)
                    mel = tl.load(mel_ptr + (stream * window + frame0) * N + bin0, mask=here, other=0.0)
                    weight = tl.load(
                        conv_weight_ptr + (k_t * 3 + k_f) * C + channel, mask=channel_mask, other=0.0
                    )
                    hidden += mel.to(tl.float32)[:, None] * weight.to(tl.float32)[None, :]
            hidden = tl.where(inside[:, None], tl.maximum(hidden, 0.0), 0.0)
            weight = tl.load(dw_weight_ptr + (tap_t * 3 + tap_f) * C + channel, mask=channel_mask, other=0.0)
            out += hidden * weight.to(tl.float32)[None, :]
    tl.store(
        out_ptr + pixel.to(tl.int64)[:, None] * C + channel[None, :],
        out,
        mask=in_range[:, None] & channel_mask[None, :],
    )


@triton.jit(do_not_specialize=["num_in", "num_out", "num_pixels"])
def _depthwise_kernel(  # type: ignore[no-untyped-def]
    hidden_ptr,
    start_ptr,
    mel_end_ptr,
    dw_weight_ptr,
    dw_bias_ptr,
    out_ptr,
    num_in,
    num_out,
    num_pixels,
    F_IN: tl.constexpr,
    F_OUT: tl.constexpr,
    C: tl.constexpr,
    BLOCK_P: tl.constexpr,
    BLOCK_C: tl.constexpr,
):
    pixel = tl.program_id(0) * BLOCK_P + tl.arange(0, BLOCK_P)
    in_range = pixel < num_pixels
    bin_out = pixel % F_OUT
    frame_out = (pixel // F_OUT) % num_out
    stream = (pixel // (F_OUT * num_out)).to(tl.int64)
    channel = tl.program_id(1) * BLOCK_C + tl.arange(0, BLOCK_C)
    channel_mask = channel < C
    start = tl.load(start_ptr + stream, mask=in_range, other=0)
    mel_end = tl.load(mel_end_ptr + stream, mask=in_range, other=0)
    end_in = (mel_end // 2 + 1) // 2 + 1
    dw_bias = tl.load(dw_bias_ptr + channel, mask=channel_mask, other=0.0).to(tl.float32)
    out = tl.zeros((BLOCK_P, BLOCK_C), dtype=tl.float32) + dw_bias[None, :]
    for tap_t in tl.static_range(3):
        for tap_f in tl.static_range(3):
            frame_in = 2 * frame_out + tap_t
            bin_in = 2 * bin_out + tap_f - 2
            abs_in = 2 * start - 2 + frame_in
            here = in_range & (abs_in >= 0) & (abs_in < end_in) & (bin_in >= 0) & (bin_in < F_IN)
            offset = ((stream * num_in + frame_in) * F_IN + bin_in) * C
            hidden = tl.load(
                hidden_ptr + offset[:, None] + channel[None, :],
                mask=here[:, None] & channel_mask[None, :],
                other=0.0,
            )
            weight = tl.load(dw_weight_ptr + (tap_t * 3 + tap_f) * C + channel, mask=channel_mask, other=0.0)
            out += hidden.to(tl.float32) * weight.to(tl.float32)[None, :]
    tl.store(
        out_ptr + pixel.to(tl.int64)[:, None] * C + channel[None, :],
        out,
        mask=in_range[:, None] & channel_mask[None, :],
    )


def conv_and_depthwise(
    mel_BWN: Tensor,
    start_B: Tensor,
    mel_end_B: Tensor,
    conv_weight_KC: Tensor,
    conv_bias_C: Tensor,
    dw_weight_KC: Tensor,
    dw_bias_C: Tensor,
) -> Tensor:
    """Compute the reference's function. `start_B` and `mel_end_B` are int32; all tensors are contiguous."""
    num_streams, window, bins = mel_BWN.shape
    channels = conv_weight_KC.shape[1]
    bins1 = bins // 2 + 1
    bins2 = bins1 // 2 + 1
    num_out = (window - 7) // 4 + 1
    out_BTFC = torch.empty(
        (num_streams, num_out, bins2, channels), dtype=conv_weight_KC.dtype, device=mel_BWN.device
    )
    num_pixels = num_streams * num_out * bins2
    block_c = min(64, triton.next_power_of_2(channels))
    _conv_and_depthwise_kernel[(triton.cdiv(num_pixels, 32), triton.cdiv(channels, block_c))](
        mel_BWN,
        start_B,
        mel_end_B,
        conv_weight_KC,
        conv_bias_C,
        dw_weight_KC,
        dw_bias_C,
        out_BTFC,
        window,
        num_out,
        num_pixels,
        N=bins,
        F1=bins1,
        F2=bins2,
        C=channels,
        BLOCK_P=32,
        BLOCK_C=block_c,
        num_warps=4,
    )
    return out_BTFC


def depthwise(
    hidden_BTFC: Tensor, start_B: Tensor, mel_end_B: Tensor, dw_weight_KC: Tensor, dw_bias_C: Tensor
) -> Tensor:
    """Compute the reference's function. All tensors are contiguous."""
    num_streams, num_in, bins, channels = hidden_BTFC.shape
    num_out = (num_in - 1) // 2
    bins_out = bins // 2 + 1
    out_BTFC = hidden_BTFC.new_empty((num_streams, num_out, bins_out, channels))
    num_pixels = num_streams * num_out * bins_out
    block_c = min(128, triton.next_power_of_2(channels))
    _depthwise_kernel[(triton.cdiv(num_pixels, 32), triton.cdiv(channels, block_c))](
        hidden_BTFC,
        start_B,
        mel_end_B,
        dw_weight_KC,
        dw_bias_C,
        out_BTFC,
        num_in,
        num_out,
        num_pixels,
        F_IN=bins,
        F_OUT=bins_out,
        C=channels,
        BLOCK_P=32,
        BLOCK_C=block_c,
        num_warps=4,
    )
    return out_BTFC
