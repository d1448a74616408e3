"""Reference of `conv_module.py` in plain PyTorch.

Shape suffixes: B streams of the step, T frames of the step, D width of the model, S slots,
K taps of the convolution.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F


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
    """Compute GLU, causal depthwise convolution, layer norm and SiLU of a convolution module.

    `gates_BTE` is the first pointwise convolution's output, E = 2 D.  `cache_SKD` holds the last K - 1
    GLU outputs of every slot, oldest first, and advances in place by the stream's valid frames. Where
    `start_B` is 0 a stream begins, and the slot's cached frames count as zeros. Rows past `num_frames_B` are
    zeros.
    """
    num_streams, num_rows, _ = gates_BTE.shape
    taps = weight_KD.shape[0]
    slots = slots_B.long()
    glu_BTD = F.glu(gates_BTE.float(), dim=-1).to(cache_SKD.dtype).float()
    past_BKD = cache_SKD[slots].float() * (start_B > 0)[:, None, None]
    window_BWD = torch.cat([past_BKD, glu_BTD], dim=1)
    conv_BTD = torch.zeros_like(glu_BTD)
    for tap in range(taps):
        conv_BTD += weight_KD[tap].float() * window_BWD[:, tap : tap + num_rows]
    if conv_bias_D is not None:
        conv_BTD += conv_bias_D.float()
    norm_BTD = F.layer_norm(conv_BTD, conv_BTD.shape[-1:], norm_weight_D.float(), norm_bias_D.float(), eps)
    valid_BT = torch.arange(num_rows, device=slots.device) < num_frames_B[:, None]
    for row in range(num_streams):
        frames = int(num_frames_B[row])
        if frames:
            cache_SKD[slots[row]] = window_BWD[row, frames : frames + taps - 1].to(cache_SKD.dtype)
    return (F.silu(norm_BTD) * valid_BT[..., None]).to(gates_BTE.dtype)
