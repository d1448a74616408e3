"""The objective of training: the transducer loss and two CTC losses, per target."""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from training.loss.transducer import EmissionWindow, transducer_loss
from training.model.transducer import PHONEMES_PER_FRAME, Encoded, TrainingModel

FASTEMIT = 5e-3


@dataclass(frozen=True, slots=True)
class LossWeights:
    """Weights of the transducer, the CTC head on tokens and the CTC head on phonemes."""

    transducer: float
    tokens: float
    phonemes: float


@dataclass(frozen=True, slots=True)
class Targets:
    """Targets of a batch on the model's device; their lengths are on the host, too.

    CTC takes lengths from the host: reading them from the device would halt the device every step.
    """

    tokens_BU: Tensor
    num_tokens_B: Tensor
    phonemes_BU: Tensor
    window: EmissionWindow | None
    host_num_frames: tuple[int, ...]
    host_num_tokens: tuple[int, ...]
    host_num_phonemes: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class Losses:
    """`total` carries the gradient; the parts, each per target, are for the log."""

    total: Tensor
    transducer: Tensor
    tokens: Tensor
    phonemes: Tensor


def losses(model: TrainingModel, encoded: Encoded, targets: Targets, weights: LossWeights) -> Losses:
    """Return the weighted sum of the losses and its parts; a part of weight 0 is not computed."""
    max_frames = max(targets.host_num_frames)
    encoded_BTD, middle_BTD = encoded.encoded_BTD[:, :max_frames], encoded.middle_BTD[:, :max_frames]
    num_rows = len(targets.host_num_frames)
    num_tokens = sum(targets.host_num_tokens) + num_rows
    num_phonemes = sum(targets.host_num_phonemes) + num_rows
    transducer = tokens = phonemes = torch.zeros((), device=encoded_BTD.device)
    if weights.transducer:
        each = transducer_loss(
            model.logits(encoded_BTD, targets.tokens_BU),
            targets.tokens_BU,
            encoded.num_frames_B,
            targets.num_tokens_B,
            blank=model.config.blank_id,
            fastemit=FASTEMIT,
            window=targets.window,
        )
        transducer = each.sum() / num_tokens
    with torch.autocast(encoded_BTD.device.type, enabled=False):
        if weights.tokens:
            tokens = _ctc(
                model.token_log_probs(encoded_BTD),
                targets.tokens_BU,
                targets.host_num_frames,
                targets.host_num_tokens,
            )
            tokens = tokens / num_tokens
        if weights.phonemes:
            phonemes = _ctc(
                model.phoneme_log_probs(middle_BTD),
                targets.phonemes_BU,
                tuple(PHONEMES_PER_FRAME * count for count in targets.host_num_frames),
                targets.host_num_phonemes,
            )
            phonemes = phonemes / num_phonemes
    total = weights.transducer * transducer + weights.tokens * tokens + weights.phonemes * phonemes
    return Losses(total, transducer.detach(), tokens.detach(), phonemes.detach())


def _ctc(
    log_probs_BTV: Tensor, targets_BU: Tensor, num_frames: tuple[int, ...], num_targets: tuple[int, ...]
) -> Tensor:
    return F.ctc_loss(
        log_probs_BTV.transpose(0, 1),
        targets_BU,
        num_frames,  # type: ignore[arg-type]  # tuples keep the lengths on the host
        num_targets,  # type: ignore[arg-type]
        blank=log_probs_BTV.shape[2] - 1,
        reduction="sum",
        zero_infinity=True,
    )
