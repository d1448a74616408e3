"""Greedy transducer decoding with NeMo's decoder and joint, one symbol after another.

NeMo's own batched decoder cannot reset the predictor at chosen tokens, nor return the logits of each
decision; without a reset this loop must agree with it, and references.py checks that it does.
"""

from __future__ import annotations

import math
from collections.abc import Container
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray


@dataclass(frozen=True, slots=True)
class Decoded:
    """Tokens, their encoder frames and confidences; `logits` of every decision, blanks among them."""

    tokens: list[int]
    frames: list[int]
    confidences: list[float]
    logits: NDArray[np.float32]


def token_confidence(log_probabilities: torch.Tensor) -> float:
    """NeMo's confidence measure `max_prob`."""
    from nemo.collections.asr.parts.utils.asr_confidence_utils import get_confidence_measure_bank

    measure = get_confidence_measure_bank()["max_prob"]
    value = float(measure(log_probabilities, v=log_probabilities.shape[-1], t=1.0))
    if not math.isfinite(value):
        raise ValueError("the confidence is not finite")
    return value


@torch.no_grad()
def greedy(
    model: Any, encoded_TD: torch.Tensor, *, max_symbols: int = 10, reset_at: Container[int] = ()
) -> Decoded:
    """Decode one stream.

    A token of `reset_at` ends its frame, and the predictor starts anew at the next: what NeMo's own decoder
    gives when it is called afresh on the frames after the token.
    """
    decoder, joint = model.decoder, model.joint
    blank = decoder.blank_idx
    tokens: list[int] = []
    frames: list[int] = []
    confidences: list[float] = []
    logits: list[torch.Tensor] = []

    def predict(token: int | None, state: Any) -> tuple[torch.Tensor, Any]:
        label = None if token is None else torch.tensor([[token]])
        output, new_state = decoder.predict(label, state, add_sos=False, batch_size=1)
        return output, new_state

    predicted, state = predict(None, None)
    for index, frame in enumerate(encoded_TD):
        for _ in range(max_symbols):
            scores = joint.joint(frame[None, None], predicted)[0, 0, 0]
            logits.append(scores)
            token = int(scores.argmax())
            if token == blank:
                break
            tokens.append(token)
            frames.append(index)
            confidences.append(token_confidence(scores.log_softmax(-1)))
            if token in reset_at:
                predicted, state = predict(None, None)
                break
            predicted, state = predict(token, state)
    return Decoded(tokens, frames, confidences, torch.stack(logits).numpy())
