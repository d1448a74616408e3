"""Batched greedy transducer decoding with per-token confidence.

A round computes the best symbol of all remaining frames of a row with the row's current predictor output. It
skips the blanks and emits the first token. Then the predictor takes that token and the next round begins at
the token's frame. A chunk without speech takes one round, however many frames it has, and no predictor call.

Confidence of a token is NeMo's `max_prob` measure of the distribution that emitted it: the token's
probability, scaled so that an even distribution gives 0.  NeMo's own default (Tsallis entropy, exponential
normalization) spreads right words over ten orders of magnitude, so no client could set a threshold.

Boosted phrases (`Fusion`) only change which token is emitted: a blank stays a blank, and confidence is that
of the distribution without phrases.

`<EOU>` and `<EOB>` are ordinary tokens. With `reset` they also close their frame and reset the predictor to
its start, so that the next utterance begins like a stream.

Shape legend: B rows, T frames, J joint width, P predictor layers, U predictor width, V vocabulary with
blank, E rounds.

Source: the label-looping algorithm (Bataev et al. 2024) as in NeMo
`transducer_decoding/rnnt_label_looping.py`; `nemo/collections/asr/parts/utils/asr_confidence_utils.py`.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from gpu_worker.kernels.reference.greedy_decode_reference import token_confidence
from gpu_worker.model.config import ModelConfig
from gpu_worker.model.layers.joint import Joint
from gpu_worker.model.layers.predictor import Predictor
from gpu_worker.model.state import PredictorStart


class Fusion(Protocol):
    """A second influence, beside the model, on which token is emitted."""

    def choose(self, logits_BV: Tensor, token_B: Tensor) -> Tensor:
        """Return the tokens to emit, int64, from the logits at each row's frame and the model's choice."""
        ...

    def advance(self, emits_B: Tensor, token_B: Tensor) -> None:
        """Update the state of rows with `emits_B`, which have emitted their tokens."""
        ...


@dataclass(slots=True)
class DecodeWork:
    """Rows that are being decoded. `pointer_B` is the current frame, `symbols_B` the tokens emitted there."""

    encoder_BTJ: Tensor
    num_frames_B: Tensor
    hidden_PBU: Tensor
    cell_PBU: Tensor
    output_BJ: Tensor
    pointer_B: Tensor
    symbols_B: Tensor
    fusion: Fusion | None = None


@dataclass(frozen=True, slots=True)
class Emissions:
    """Tokens of a step by round.

    `token_EB` is -1 where a row emitted none, `frame_EB` counts from the row's first frame.
    """

    token_EB: Tensor
    frame_EB: Tensor
    confidence_EB: Tensor


class GreedyDecoder:
    """Greedy search over projected encoder frames."""

    def __init__(
        self, config: ModelConfig, predictor: Predictor, joint: Joint, *, reset_at_end: bool
    ) -> None:
        self._predictor = predictor
        self._joint = joint
        self._blank = config.blank_id
        self.max_symbols = config.max_symbols
        ends = [token for token in (config.eou_id, config.eob_id) if token is not None]
        self._end_tokens = tuple(ends) if reset_at_end else ()
        hidden, cell = predictor.start()
        output = joint.project_predictor(hidden[-1])
        self.start = PredictorStart(
            hidden[:, 0].contiguous(), cell[:, 0].contiguous(), output[0].contiguous()
        )

    def begin(
        self,
        encoder_BTJ: Tensor,
        num_frames_B: Tensor,
        hidden_PBU: Tensor,
        cell_PBU: Tensor,
        output_BJ: Tensor,
        fusion: Fusion | None = None,
    ) -> DecodeWork:
        """Return the rows at their first frame, with the predictor state of their slots."""
        pointer = torch.zeros_like(num_frames_B, dtype=torch.int64)
        return DecodeWork(
            encoder_BTJ,
            num_frames_B.to(torch.int64),
            hidden_PBU,
            cell_PBU,
            output_BJ,
            pointer,
            torch.zeros_like(pointer),
            fusion,
        )

    def round(self, work: DecodeWork) -> tuple[Tensor, Tensor, Tensor] | None:
        """Emit at most one token for each row and advance the rows; None when no row emits one.

        Returns token_B (int64, -1 for no token), frame_B (int64) and confidence_B (float32).
        """
        num_frames = work.encoder_BTJ.shape[1]
        logits = self._joint.logits(work.encoder_BTJ, work.output_BJ.unsqueeze(1))
        best_BT = logits.argmax(-1)
        frames = torch.arange(num_frames, device=logits.device)
        speaks_BT = (
            (best_BT != self._blank)
            & (frames >= work.pointer_B.unsqueeze(1))
            & (frames < work.num_frames_B.unsqueeze(1))
        )
        emits_B, frame_B = speaks_BT.max(dim=1)
        if not bool(emits_B.any()):
            return None
        column = frame_B.unsqueeze(1)
        chosen_BV = logits.gather(1, column.unsqueeze(2).expand(-1, -1, logits.shape[2])).squeeze(1)
        confidence_B = token_confidence(chosen_BV.float().log_softmax(-1))
        token_B = best_BT.gather(1, column).squeeze(1)
        if work.fusion is not None:
            token_B = work.fusion.choose(chosen_BV, token_B)
            work.fusion.advance(emits_B, token_B)

        hidden, cell = self._predictor.run(token_B, work.hidden_PBU, work.cell_PBU)
        output = self._joint.project_predictor(hidden[-1])
        symbols = torch.where(frame_B == work.pointer_B, work.symbols_B, 0) + 1
        closes = symbols >= self.max_symbols
        if self._end_tokens:
            ends = token_B == self._end_tokens[0]
            for end in self._end_tokens[1:]:
                ends = ends | (token_B == end)
            closes = closes | ends
            hidden = torch.where(ends.view(1, -1, 1), self.start.hidden_PU.unsqueeze(1), hidden)
            cell = torch.where(ends.view(1, -1, 1), self.start.cell_PU.unsqueeze(1), cell)
            output = torch.where(ends.unsqueeze(1), self.start.output_J, output)
        emits_row = emits_B.unsqueeze(1)
        work.hidden_PBU = torch.where(emits_row, hidden, work.hidden_PBU)
        work.cell_PBU = torch.where(emits_row, cell, work.cell_PBU)
        work.output_BJ = torch.where(emits_row, output, work.output_BJ)
        work.pointer_B = torch.where(emits_B, frame_B + closes, work.num_frames_B)
        work.symbols_B = torch.where(closes, 0, symbols)
        return torch.where(emits_B, token_B, -1), frame_B, confidence_B

    def run(self, work: DecodeWork) -> Emissions | None:
        """Run rounds until no row emits a token. Returns None when no round emitted one."""
        tokens: list[Tensor] = []
        frames: list[Tensor] = []
        confidences: list[Tensor] = []
        for _ in range(work.encoder_BTJ.shape[1] * self.max_symbols + 1):
            emitted = self.round(work)
            if emitted is None:
                break
            token_B, frame_B, confidence_B = emitted
            tokens.append(token_B)
            frames.append(frame_B)
            confidences.append(confidence_B)
        if not tokens:
            return None
        return Emissions(torch.stack(tokens), torch.stack(frames), torch.stack(confidences))
