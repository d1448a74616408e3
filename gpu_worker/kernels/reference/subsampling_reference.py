"""Reference of `subsampling.py` in plain PyTorch.

The three stride-2 stages of NeMo's causal `dw_striding` subsampling, cut so that a step computes only
what its own encoder frames need.  Encoder frame j needs frames 2j - 2 .. 2j of the stage before it, and
so on down to mel frames 8j - 14 .. 8j.  A step of T encoder frames from `start` on therefore reads
8T + 7 mel frames, from absolute frame 8 start - 14 on.  Frames before the stream's first frame and after its
last are zeros at every stage, as the padding of the whole recording would be.

Shape suffixes: B streams of the step, W mel frames of the window, N mel bins, T frames of a stage,
F bins of a stage, C channels, K 9 taps (time-major).
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F


def _stage_end(mel_end_B: Tensor, stage: int) -> Tensor:
    """Return the number of frames of the whole stream after `stage` stages of stride 2."""
    end_B = mel_end_B.long()
    for _ in range(stage):
        end_B = end_B // 2 + 1
    return end_B


def _in_stream(first_B: Tensor, count: int, end_B: Tensor) -> Tensor:
    frames_BT = first_B.long()[:, None] + torch.arange(count, device=first_B.device)
    return (frames_BT >= 0) & (frames_BT < end_B[:, None])


def conv_and_depthwise(
    mel_BWN: Tensor,
    start_B: Tensor,
    mel_end_B: Tensor,
    conv_weight_KC: Tensor,
    conv_bias_C: Tensor,
    dw_weight_KC: Tensor,
    dw_bias_C: Tensor,
) -> Tensor:
    """Compute the first stage (dense, ReLU) and the depthwise convolution of the second stage.

    `start_B` is the absolute number of the step's first encoder frame, `mel_end_B` the number of mel frames
    of the whole stream (any huge number while it is not known). Returns [B, 2T + 1, F, C], whose first frame
    is absolute frame 2 start - 2 of the second stage; the caller applies the pointwise convolution.
    """
    num_out = (mel_BWN.shape[1] - 7) // 4 + 1
    channels = conv_weight_KC.shape[1]
    mel_BWN = mel_BWN * _in_stream(8 * start_B - 14, mel_BWN.shape[1], mel_end_B)[..., None]
    # Time needs no padding, which the window includes; frequency is padded by 2 and 1.
    image = F.pad(mel_BWN.float()[:, None], (2, 1))
    kernel = conv_weight_KC.float().T.reshape(channels, 1, 3, 3)
    hidden = F.relu(F.conv2d(image, kernel, conv_bias_C.float(), stride=2))
    hidden = hidden * _in_stream(4 * start_B - 6, hidden.shape[2], _stage_end(mel_end_B, 1))[:, None, :, None]
    kernel = dw_weight_KC.float().T.reshape(channels, 1, 3, 3)
    out = F.conv2d(F.pad(hidden, (2, 1)), kernel, dw_bias_C.float(), stride=2, groups=channels)
    return out[:, :, :num_out].permute(0, 2, 3, 1).contiguous().to(conv_weight_KC.dtype)


def depthwise(
    hidden_BTFC: Tensor, start_B: Tensor, mel_end_B: Tensor, dw_weight_KC: Tensor, dw_bias_C: Tensor
) -> Tensor:
    """Compute the depthwise convolution of the third stage, [B, 2T + 1, F, C] to [B, T, F', C]."""
    channels = dw_weight_KC.shape[1]
    inside = _in_stream(2 * start_B - 2, hidden_BTFC.shape[1], _stage_end(mel_end_B, 2))
    image = (hidden_BTFC.float() * inside[..., None, None]).permute(0, 3, 1, 2)
    kernel = dw_weight_KC.float().T.reshape(channels, 1, 3, 3)
    out = F.conv2d(F.pad(image, (2, 1)), kernel, dw_bias_C.float(), stride=2, groups=channels)
    return out.permute(0, 2, 3, 1).contiguous().to(dw_weight_KC.dtype)
