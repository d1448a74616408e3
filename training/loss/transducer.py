"""The transducer loss from joint logits, with FastEmit and with a time window for chosen targets.

A transducer may emit a token anywhere before the next one, and learns to wait. But an `<EOU>` should be
emitted at once: outside its window a label costs `WINDOW_NATS`. The penalty is finite, so that every
recording has a path.

Shape legend: B recordings, T encoder frames, U targets, V tokens with blank.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable

from training.loss.lattice import ScanFrames, occupancy

WINDOW_NATS = 12.0


@dataclass(frozen=True, slots=True)
class EmissionWindow:
    """First and last frame in which each target may be emitted, int64 [B, U] each.

    A target without a limit has 0 and a number beyond any frame.
    """

    first_BU: Tensor
    last_BU: Tensor

    def penalty(self, num_frames_B: Tensor, max_frames: int) -> Tensor:
        """Return nats [B, T, U] to subtract from labels; windows past the end move to the last frames."""
        last_frame_B1 = num_frames_B[:, None] - 1
        first = torch.minimum(self.first_BU, last_frame_B1 - 1).clamp(min=0)
        last = torch.minimum(torch.maximum(self.last_BU, first), last_frame_B1)
        frame = torch.arange(max_frames, device=num_frames_B.device)[None, :, None]
        outside = (frame < first[:, None]) | (frame > last[:, None])
        return WINDOW_NATS * outside.float()


def transducer_loss(
    logits_BTUV: Tensor,
    targets_BU: Tensor,
    num_frames_B: Tensor,
    num_targets_B: Tensor,
    *,
    blank: int,
    fastemit: float = 0.0,
    window: EmissionWindow | None = None,
    scan: ScanFrames | None = None,
) -> Tensor:
    """Return the negative log-likelihood of each recording, [B], in float32.

    Args:
        logits_BTUV: joint output, [B, T, U + 1, V], before the softmax, in any precision.
        targets_BU: int64 targets, padded by any number below V.
        num_frames_B, num_targets_B: int64 lengths.
        blank: index of the blank.
        fastemit: share by which labels' gradients are raised (lambda of FastEmit); the loss value is not.
        window: frames in which targets may be emitted.
        scan: see `occupancy`.
    """
    blank_BTU, label_BTU = _EdgeLogProbs.apply(logits_BTUV, targets_BU, blank)  # type: ignore[no-untyped-call]
    if window is not None:
        label_BTU = label_BTU - F.pad(window.penalty(num_frames_B, logits_BTUV.shape[1]), (0, 1))
    edges = (blank_BTU, label_BTU, num_frames_B, num_targets_B)
    loss: Tensor = _LatticeLoss.apply(*edges, fastemit, scan)  # type: ignore[no-untyped-call]
    return loss


class _EdgeLogProbs(torch.autograd.Function):
    """Log-probabilities of blank and next target at each node, without a log-softmax of all logits.

    The log-softmax would be a second tensor as large as the logits, the largest of training, in float32.
    """

    @staticmethod
    def forward(ctx: Any, logits: Tensor, targets_BU: Tensor, blank: int) -> tuple[Tensor, Tensor]:
        total = torch.logsumexp(logits.float(), -1)
        index = F.pad(targets_BU, (0, 1))[:, None, :, None].expand(-1, logits.shape[1], -1, 1)
        ctx.save_for_backward(logits, total, index)
        ctx.blank = blank
        return logits[..., blank].float() - total, logits.gather(-1, index)[..., 0].float() - total

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, blank_grad: Tensor, label_grad: Tensor) -> tuple[Tensor, None, None]:
        logits, total, index = ctx.saved_tensors
        grad = torch.exp(logits.float() - total[..., None])
        grad.mul_(-(blank_grad + label_grad)[..., None])
        grad[..., ctx.blank] += blank_grad
        grad.scatter_add_(-1, index, label_grad[..., None])
        return grad.to(logits.dtype), None, None


class _LatticeLoss(torch.autograd.Function):
    """Negative log-likelihoods; the gradient is the expected use of each edge."""

    @staticmethod
    def forward(
        ctx: Any,
        blank_BTU: Tensor,
        label_BTU: Tensor,
        num_frames_B: Tensor,
        num_targets_B: Tensor,
        fastemit: float,
        scan: ScanFrames | None,
    ) -> Tensor:
        uses = occupancy(blank_BTU, label_BTU, num_frames_B, num_targets_B, scan)
        ctx.save_for_backward(-uses.blank_BTU, -(1.0 + fastemit) * uses.label_BTU)
        return -uses.log_likelihood_B

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_B: Tensor) -> tuple[Tensor, Tensor, None, None, None, None]:
        blank_grad, label_grad = ctx.saved_tensors
        scale = grad_B[:, None, None]
        return blank_grad * scale, label_grad * scale, None, None, None, None
