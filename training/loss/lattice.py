"""Forward and backward scores of the transducer's lattice, for all recordings of a batch at once.

A path goes from (frame 0, target 0) to (last frame, last target): a blank moves it to the next frame, a label
to the next target, and a last blank ends it. Along a frame, labels only add up: with S the running sum of a
frame's label scores, alpha - S is a running log-sum over the paths that arrived by blanks, so that a frame is
one `logcumsumexp` instead of a loop over targets. The backward scores are forward scores of the reversed
lattice.

Shape legend: B recordings, T frames, U target positions (targets + 1).

Source: Graves 2012, "Sequence transduction with recurrent neural networks"; FastEmit is Yu et al. 2021.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from training.loss.scan import scan_frames as scan_frames_reference

_NEVER = -1e30
# The log-weight of labels that do not exist. They are summed up along a frame, where minus infinity would
# make NaN of differences; they come after all labels that do exist, whose sums stay exact.
_NO_LABEL = -1e4

ScanFrames = Callable[[Tensor, Tensor], Tensor]


@dataclass(frozen=True, slots=True)
class Occupancy:
    """Log-likelihood of each recording, and the expected uses of each edge of its lattice.

    `blank_BTU` and `label_BTU` are the derivatives of `log_likelihood_B` by the edges' log-probabilities.
    """

    log_likelihood_B: Tensor
    blank_BTU: Tensor
    label_BTU: Tensor


def occupancy(
    blank_BTU: Tensor,
    label_BTU: Tensor,
    num_frames_B: Tensor,
    num_targets_B: Tensor,
    scan: ScanFrames | None = None,
) -> Occupancy:
    """Sum over all paths.

    Args:
        blank_BTU: log-probability of the blank at each node, float32.
        label_BTU: log-probability of the next target at each node; the last position of a recording has none.
        num_frames_B: frames of each recording, at least 1.
        num_targets_B: targets of each recording, at most U - 1.
        scan: how to run `scan_frames`; the kernel on CUDA and the reference elsewhere, unless told.
    """
    num_rows, max_frames, width = blank_BTU.shape
    device = blank_BTU.device
    frame, position = torch.arange(max_frames, device=device), torch.arange(width, device=device)
    has_label_BU = position[None] < num_targets_B[:, None]
    label_BTU = torch.where(has_label_BU[:, None], label_BTU, _NEVER)

    turn = _Turn(num_frames_B[:, None] - 1 - frame[None], num_targets_B[:, None] - position[None])
    blank_back, label_back = turn(blank_BTU, 0.0), turn(label_BTU, _NEVER)
    # Forward, an edge's weight stands at the node that it leaves; backward at the one that it enters.
    by_blank = torch.cat([F.pad(blank_BTU[:, :-1], (0, 0, 1, 0)), blank_back])
    # No label leads to the first position; sums along a frame begin there with nothing.
    by_label = F.pad(torch.cat([label_BTU[..., :-1], label_back[..., 1:]]), (1, 0))
    start = torch.full((2 * num_rows, width), _NEVER, device=device)
    start[:num_rows, 0] = 0.0
    start[num_rows:, 0] = blank_back[:, 0, 0]
    scores = _scores(start, by_blank, by_label, scan or _scan_for(device))
    alpha, beta = scores[:num_rows], turn(scores[num_rows:], _NEVER)

    row = torch.arange(num_rows, device=device)
    end = (row, num_frames_B - 1, num_targets_B)
    likelihood = alpha[end] + blank_BTU[end]
    offset = alpha - likelihood[:, None, None]
    after_blank = F.pad(beta[:, 1:], (0, 0, 0, 1), value=_NEVER)
    after_label = F.pad(beta[..., 1:], (0, 1), value=_NEVER)
    blank_uses = (offset + blank_BTU + after_blank).clamp(max=0.0).exp()
    blank_uses[end] = 1.0
    label_uses = (offset + label_BTU + after_label).clamp(max=0.0).exp()
    in_time = (frame[None] < num_frames_B[:, None])[..., None]
    reached = (position[None] <= num_targets_B[:, None])[:, None]
    return Occupancy(
        likelihood,
        torch.where(in_time & reached, blank_uses, 0.0),
        torch.where(in_time & has_label_BU[:, None], label_uses, 0.0),
    )


def _scores(start_NU: Tensor, by_blank_NTU: Tensor, by_label_NTU: Tensor, scan: ScanFrames) -> Tensor:
    """Log-sums of all paths into each node, [N, T, U], from the weights of the edges into it."""
    sums_TNU = by_label_NTU.clamp(min=_NO_LABEL).cumsum(-1).transpose(0, 1).contiguous()
    into_TNU = torch.empty_like(sums_TNU)
    into_TNU[1:] = sums_TNU[:-1] + by_blank_NTU.transpose(0, 1)[1:] - sums_TNU[1:]
    return (scan(start_NU, into_TNU) + sums_TNU).transpose(0, 1)


class _Turn:
    """Turns each recording's part of a lattice round, and back."""

    def __init__(self, frame_BT: Tensor, position_BU: Tensor) -> None:
        self._frame = frame_BT.clamp(min=0)[:, :, None]
        self._position = position_BU.clamp(min=0)[:, None]
        self._inside = (frame_BT >= 0)[:, :, None] & (position_BU >= 0)[:, None]

    def __call__(self, x_BTU: Tensor, outside: float) -> Tensor:
        frames = x_BTU.gather(1, self._frame.expand_as(x_BTU))
        return torch.where(self._inside, frames.gather(2, self._position.expand_as(x_BTU)), outside)


def _scan_for(device: torch.device) -> ScanFrames:
    if device.type != "cuda":
        return scan_frames_reference
    from training.loss.scan_kernel import scan_frames

    return scan_frames
