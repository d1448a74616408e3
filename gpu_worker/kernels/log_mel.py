"""Log-mel features on the device: framing, DFT as a float32 matrix product, mel filters (Triton).

The window of NeMo's front end has 400 of the 512 samples of the transform; a shift of the frame inside the
transform changes phases only, so the 400 samples are transformed without padding.  Shape suffixes and the
arithmetic of windows as in the reference, `log_mel_reference`.
"""

# mypy: disable-error-code="untyped-decorator"

from __future__ import annotations

import math

import torch
import triton
import triton.language as tl
from torch import Tensor

from gpu_worker.kernels.reference.log_mel_reference import (
    CACHED_MELS,
    FRAME_SAMPLES,
    HOP_SAMPLES,
    LEAD_SAMPLES,
    TAIL_SAMPLES,
    WIN_SAMPLES,
)


@triton.jit(do_not_specialize=["num_new"])
def _frames_kernel(  # type: ignore[no-untyped-def]
    samples_ptr,
    tail_ptr,
    mel_cache_ptr,
    slots_ptr,
    start_ptr,
    sample_end_ptr,
    window_ptr,
    frames_ptr,
    mel_ptr,
    num_new,
    stride_samples,
    preemphasis,
    N: tl.constexpr,
    HOP: tl.constexpr,
    FRAME: tl.constexpr,
    WIN: tl.constexpr,
    TAIL: tl.constexpr,
    LEAD: tl.constexpr,
    CACHED: tl.constexpr,
    BLOCK: tl.constexpr,
):
    stream = tl.program_id(0).to(tl.int64)
    mel = tl.program_id(1)
    slot = tl.load(slots_ptr + stream).to(tl.int64)
    start = tl.load(start_ptr + stream)
    sample_end = tl.load(sample_end_ptr + stream)
    index = tl.arange(0, BLOCK)
    inside = index < WIN
    # Position in the row's samples (the tail, then the new ones), and in the stream.
    place = HOP * mel + 1 + index
    absolute = FRAME * start - LEAD - TAIL + place
    new_row = samples_ptr + stream * stride_samples - TAIL
    tail_row = tail_ptr + slot * TAIL
    here = tl.load(new_row + place, mask=inside & (place >= TAIL), other=0.0)
    here += tl.load(tail_row + place, mask=inside & (place < TAIL), other=0.0)
    before = tl.load(new_row + place - 1, mask=inside & (place > TAIL), other=0.0)
    before += tl.load(tail_row + place - 1, mask=inside & (place <= TAIL), other=0.0)
    window = tl.load(window_ptr + index, mask=inside, other=0.0)
    heard = (absolute >= 0) & (absolute < sample_end)
    frame = tl.where(heard, here - preemphasis * before, 0.0) * window
    tl.store(frames_ptr + (stream * num_new + mel) * WIN + index, frame, mask=inside)
    if mel < CACHED:
        bins = tl.arange(0, BLOCK)
        cached = tl.load(mel_cache_ptr + (slot * CACHED + mel) * N + bins, mask=bins < N, other=0.0)
        tl.store(mel_ptr + (stream * (num_new + CACHED) + mel) * N + bins, cached, mask=bins < N)


@triton.jit(do_not_specialize=["num_rows", "num_new"])
def _mel_kernel(  # type: ignore[no-untyped-def]
    spectrum_ptr,
    filters_ptr,
    mel_ptr,
    num_rows,
    num_new,
    log_zero_guard,
    X: tl.constexpr,
    N: tl.constexpr,
    WIDTH: tl.constexpr,
    CACHED: tl.constexpr,
    BLOCK_R: tl.constexpr,
    BLOCK_X: tl.constexpr,
    BLOCK_N: tl.constexpr,
):
    row = tl.program_id(0) * BLOCK_R + tl.arange(0, BLOCK_R)
    row_mask = row < num_rows
    bins = tl.arange(0, BLOCK_N)
    total = tl.zeros((BLOCK_R, BLOCK_N), dtype=tl.float32)
    for first in range(0, X, BLOCK_X):
        freq = first + tl.arange(0, BLOCK_X)
        freq_mask = freq < X
        offsets = row.to(tl.int64)[:, None] * WIDTH + freq[None, :]
        mask = row_mask[:, None] & freq_mask[None, :]
        real = tl.load(spectrum_ptr + offsets, mask=mask, other=0.0)
        imaginary = tl.load(spectrum_ptr + offsets + X, mask=mask, other=0.0)
        filters = tl.load(
            filters_ptr + freq[:, None] * N + bins[None, :],
            mask=freq_mask[:, None] & (bins < N)[None, :],
            other=0.0,
        )
        power = real * real + imaginary * imaginary
        total = tl.dot(power, filters, total, input_precision="ieee")
    out_row = (row // num_new).to(tl.int64) * (num_new + CACHED) + CACHED + row % num_new
    tl.store(
        mel_ptr + out_row[:, None] * N + bins[None, :],
        tl.log(total + log_zero_guard),
        mask=row_mask[:, None] & (bins < N)[None, :],
    )


@triton.jit(do_not_specialize=["num_new"])
def _move_caches_kernel(  # type: ignore[no-untyped-def]
    samples_ptr,
    mel_ptr,
    tail_ptr,
    mel_cache_ptr,
    slots_ptr,
    num_frames_ptr,
    num_new,
    stride_samples,
    N: tl.constexpr,
    FRAME: tl.constexpr,
    TAIL: tl.constexpr,
    CACHED: tl.constexpr,
    BLOCK_TAIL: tl.constexpr,
    BLOCK_MEL: tl.constexpr,
):
    stream = tl.program_id(0).to(tl.int64)
    slot = tl.load(slots_ptr + stream).to(tl.int64)
    num_frames = tl.load(num_frames_ptr + stream)
    if num_frames > 0:
        index = tl.arange(0, BLOCK_TAIL)
        # A frame is longer than the tail, so the new tail lies wholly in the new samples.
        new_row = samples_ptr + stream * stride_samples + FRAME * num_frames - TAIL
        tail = tl.load(new_row + index, mask=index < TAIL, other=0.0)
        tl.store(tail_ptr + slot * TAIL + index, tail, mask=index < TAIL)
        value = tl.arange(0, BLOCK_MEL)
        mel_row = mel_ptr + (stream * (num_new + CACHED) + 8 * num_frames) * N
        mel = tl.load(mel_row + value, mask=value < CACHED * N, other=0.0)
        tl.store(mel_cache_ptr + slot * CACHED * N + value, mel, mask=value < CACHED * N)


def dft_matrix(window_I: Tensor, n_fft: int) -> Tensor:
    """Return the DFT matrix, real and imaginary parts, [I, 2X padded to a multiple of 8], float32.

    It is computed in float64 on the CPU, so that its error is one rounding.
    """
    num_freqs = n_fft // 2 + 1
    index = torch.arange(window_I.shape[0], dtype=torch.float64)
    freq = torch.arange(num_freqs, dtype=torch.float64)
    angle_IX = 2 * math.pi / n_fft * index[:, None] * freq[None, :]
    matrix = torch.zeros(window_I.shape[0], -(-2 * num_freqs // 8) * 8, dtype=torch.float64)
    matrix[:, :num_freqs] = angle_IX.cos()
    matrix[:, num_freqs : 2 * num_freqs] = -angle_IX.sin()
    return matrix.float().to(window_I.device)


def log_mel_window(
    samples_BL: Tensor,
    tail_SX: Tensor,
    mel_cache_SWN: Tensor,
    slots_B: Tensor,
    start_B: Tensor,
    num_frames_B: Tensor,
    sample_end_B: Tensor,
    window_I: Tensor,
    dft_IX: Tensor,
    mel_filters_XN: Tensor,
    preemphasis: float,
    log_zero_guard: float,
) -> Tensor:
    """Compute the reference's function; `dft_IX` is from `dft_matrix`, indices are int32, rows contiguous."""
    num_streams, num_samples = samples_BL.shape
    num_new = num_samples // HOP_SAMPLES
    num_freqs, num_mels = mel_filters_XN.shape
    num_rows = num_streams * num_new
    frames_RI = samples_BL.new_empty((num_rows, WIN_SAMPLES))
    mel_BWN = samples_BL.new_empty((num_streams, num_new + CACHED_MELS, num_mels))
    _frames_kernel[(num_streams, num_new)](
        samples_BL,
        tail_SX,
        mel_cache_SWN,
        slots_B,
        start_B,
        sample_end_B,
        window_I,
        frames_RI,
        mel_BWN,
        num_new,
        samples_BL.stride(0),
        preemphasis,
        N=num_mels,
        HOP=HOP_SAMPLES,
        FRAME=FRAME_SAMPLES,
        WIN=WIN_SAMPLES,
        TAIL=TAIL_SAMPLES,
        LEAD=LEAD_SAMPLES,
        CACHED=CACHED_MELS,
        BLOCK=512,
        num_warps=4,
    )
    spectrum_RX = frames_RI @ dft_IX
    _mel_kernel[(triton.cdiv(num_rows, 32),)](
        spectrum_RX,
        mel_filters_XN,
        mel_BWN,
        num_rows,
        num_new,
        log_zero_guard,
        X=num_freqs,
        N=num_mels,
        WIDTH=dft_IX.shape[1],
        CACHED=CACHED_MELS,
        BLOCK_R=32,
        BLOCK_X=32,
        BLOCK_N=max(16, triton.next_power_of_2(num_mels)),
        num_warps=4,
    )
    _move_caches_kernel[(num_streams,)](
        samples_BL,
        mel_BWN,
        tail_SX,
        mel_cache_SWN,
        slots_B,
        num_frames_B,
        num_new,
        samples_BL.stride(0),
        N=num_mels,
        FRAME=FRAME_SAMPLES,
        TAIL=TAIL_SAMPLES,
        CACHED=CACHED_MELS,
        BLOCK_TAIL=256,
        BLOCK_MEL=triton.next_power_of_2(CACHED_MELS * num_mels),
        num_warps=4,
    )
    return mel_BWN
