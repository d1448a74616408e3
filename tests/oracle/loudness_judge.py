"""A judge of turns without a model, for engines under test."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from common.entries import StreamId
from gpu_worker.turn.outcome import Verdict
from gpu_worker.turn.stage import TurnAnswer


class LoudnessJudge:
    """A judge that is a function of the audio it is asked about.

    delay: steps between a question and its answer.
    """

    timeout_s = 60.0

    def __init__(self, delay: int = 1) -> None:
        self._coming: list[list[TurnAnswer]] = [[] for _ in range(delay + 1)]

    def ask(self, stream: StreamId, number: int, audio: NDArray[np.int16]) -> bool:
        is_complete = int(np.abs(audio[-8_000:].astype(np.int64)).sum()) % 2 == 0
        verdict = Verdict.COMPLETE if is_complete else Verdict.INCOMPLETE
        self._coming[-1].append(TurnAnswer(stream, number, verdict))
        return True

    def answers(self) -> Sequence[TurnAnswer]:
        first, *rest = self._coming
        self._coming = [*rest, []]
        return first

    def count_late(self) -> None:
        raise AssertionError("nothing is late here")

    def drop(self, stream: StreamId) -> None:
        self._coming = [[one for one in some if one.stream != stream] for some in self._coming]
