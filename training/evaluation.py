"""Word error rate on utterances, offline under the streaming mask."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from gpu_worker.model.tokenizer import Tokenizer
from parakeet.check.word_errors import word_errors
from training.data.utterances import RATE, Spoken
from training.model.transducer import TrainingModel, greedy

_LEAD_S, _TAIL_S = 0.2, 0.8
# Digital silence is a constant that no recording has, so faint noise is added.
_FLOOR = 1e-4


@dataclass(frozen=True, slots=True)
class Evaluation:
    """The word error rate, and the number of utterances with an `<EOU>`."""

    errors: int
    words: int
    ended: int
    utterances: int

    def __str__(self) -> str:
        rate = 100 * self.errors / max(1, self.words)
        return f"{rate:.1f} % of {self.words} words wrong, {self.ended} of {self.utterances} ended"


@torch.no_grad()
def evaluate(
    model: TrainingModel, spoken: Sequence[Spoken], tokenizer: Tokenizer, right: int, batch: int = 32
) -> Evaluation:
    """Decode utterances under one right context; the model is in evaluation mode meanwhile."""
    was_training = model.training
    model.eval()
    errors = words = ended = 0
    device = model.ctc.weight.device
    for start in range(0, len(spoken), batch):
        part = spoken[start : start + batch]
        samples, lengths = _batch(part)
        encoded = model.encode(samples.to(device), lengths.to(device), right)
        for one, row in zip(part, greedy(model, encoded), strict=True):
            tokens = [token for token, _ in row]
            found, expected = word_errors(one.text, tokenizer.decode(tokens))
            errors, words = errors + found, words + expected
            ended += tokenizer.eou_id in tokens
    model.train(was_training)
    return Evaluation(errors, words, ended, len(spoken))


def _batch(spoken: Sequence[Spoken]) -> tuple[Tensor, Tensor]:
    rows = []
    generator = torch.Generator().manual_seed(0)
    for one in spoken:
        audio = torch.from_numpy(one.samples).float() / 32_768
        audio = torch.nn.functional.pad(audio, (int(_LEAD_S * RATE), int(_TAIL_S * RATE)))
        rows.append(audio + _FLOOR * torch.randn(len(audio), generator=generator))
    lengths = torch.tensor([len(row) for row in rows])
    return torch.nn.utils.rnn.pad_sequence(rows, batch_first=True), lengths
