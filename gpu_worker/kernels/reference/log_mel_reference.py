"""Reference of `log_mel.py` in plain PyTorch.

Mel frame k of a stream reads samples 160k - 201 .. 160k + 199.  A step of T encoder frames from `start`
on adds mel frames 8 start - 7 .. 8 (start + T - 1), so it reads the 1,280 T new samples of its row after a
tail of 241 kept samples, and every step of a stream has the same shape. A stream begins with `LEAD_SAMPLES`
samples of silence before its first sample; no valid frame takes them for audio of the stream.

Shape suffixes: B streams of the step, L new samples, S slots, W mel frames of the window (8T + 7),
N mel bins, X frequency bins, I samples of the analysis window.
"""

from __future__ import annotations

from typing import Final

import torch
from torch import Tensor
from torch.nn import functional as F

HOP_SAMPLES: Final = 160
FRAME_SAMPLES: Final = 1280
WIN_SAMPLES: Final = 400
TAIL_SAMPLES: Final = 241
LEAD_SAMPLES: Final = 1080
CACHED_MELS: Final = 7


def log_mel_window(
    samples_BL: Tensor,
    tail_SX: Tensor,
    mel_cache_SWN: Tensor,
    slots_B: Tensor,
    start_B: Tensor,
    num_frames_B: Tensor,
    sample_end_B: Tensor,
    window_I: Tensor,
    mel_filters_XN: Tensor,
    preemphasis: float,
    log_zero_guard: float,
) -> Tensor:
    """Compute the log-mel frames for the step's encoder frames, and update the caches in place.

    `start_B` is the absolute number of the step's first encoder frame, `num_frames_B` the number of the row's
    valid frames, by which the caches advance. `sample_end_B` is the number of the stream's samples, any huge
    number while it is not known; samples after the end are silence after preemphasis. Returns [B, 8T + 7, N]
    in float32, from absolute mel frame 8 start - 14 on.
    """
    slots = slots_B.long()
    line_BL = torch.cat([tail_SX[slots], samples_BL.float()], dim=1)
    first_B = FRAME_SAMPLES * start_B.long() - LEAD_SAMPLES - TAIL_SAMPLES
    index_BL = first_B[:, None] + 1 + torch.arange(line_BL.shape[1] - 1, device=line_BL.device)
    emphasized_BL = line_BL[:, 1:] - preemphasis * line_BL[:, :-1]
    emphasized_BL = emphasized_BL * ((index_BL >= 0) & (index_BL < sample_end_B.long()[:, None]))
    frames_BWI = emphasized_BL.unfold(1, WIN_SAMPLES, HOP_SAMPLES) * window_I.float()
    n_fft = 2 * (mel_filters_XN.shape[0] - 1)
    power_BWX = torch.fft.rfft(F.pad(frames_BWI, (0, n_fft - WIN_SAMPLES))).abs().square()
    mel_BWN = torch.log(power_BWX @ mel_filters_XN.float() + log_zero_guard)
    out_BWN = torch.cat([mel_cache_SWN[slots], mel_BWN], dim=1)
    for row, frames in enumerate(num_frames_B.tolist()):
        if frames:
            at = FRAME_SAMPLES * frames
            tail_SX[slots[row]] = line_BL[row, at : at + TAIL_SAMPLES]
            mel_cache_SWN[slots[row]] = out_BWN[row, 8 * frames : 8 * frames + CACHED_MELS]
    return out_BWN
