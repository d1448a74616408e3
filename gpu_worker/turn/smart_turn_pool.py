"""smart-turn in a bounded pool of threads: it takes questions and returns answers, and no caller blocks.

The stage (`gpu_worker.turn.stage.TurnStage`) asks at the edge from speech to silence and reads the answer at
a later position of the audio, so that in real time the network has had time for it. Missing answers are
counted by reason: `refused` (the queue was full), `late` (given up after the time-out), `failed` (the network
raised). Each of them is an absent verdict, and the only way in which a result may depend on anything but the
stream's audio and options.
"""

import logging
import threading
import time
from collections import OrderedDict
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from common.entries import StreamId
from gpu_worker.turn.outcome import Verdict
from gpu_worker.turn.stage import TurnAnswer

logger = logging.getLogger(__name__)


class TurnModel(Protocol):
    """The model that the pool runs: `gpu_worker.turn.smart_turn.SmartTurn`."""

    def probability(self, audio: NDArray[np.int16]) -> float:
        """Return the probability that the turn is complete; called from several threads."""
        ...


@dataclass(slots=True)
class SmartTurnStats:
    """Counts since the start; `depth` is the number of questions that are queued or being judged."""

    asked: int = 0
    complete: int = 0
    incomplete: int = 0
    refused: int = 0
    late: int = 0
    failed: int = 0
    busy_s: float = 0.0
    depth: int = 0


@dataclass(frozen=True, slots=True, eq=False)
class _Question:
    stream: StreamId
    number: int
    audio: NDArray[np.int16]


class SmartTurnPool:
    """Judges questions in `num_threads` threads; a `TurnJudge`.

    Args:
        model: the network.
        threshold: probability from which a turn counts as complete.
        num_threads: threads; each keeps one core busy while there are questions.
        max_queued: questions that may wait, one a stream; more are refused.
        timeout_s: longest time that a result waits for an answer.
    """

    def __init__(
        self,
        model: TurnModel,
        *,
        threshold: float = 0.5,
        num_threads: int = 1,
        max_queued: int = 64,
        timeout_s: float = 0.5,
    ) -> None:
        self.timeout_s = timeout_s
        self._model = model
        self._threshold = threshold
        self._max_queued = max_queued
        self._on_answer: Callable[[], None] | None = None
        self._stats = SmartTurnStats()
        self._queue: OrderedDict[StreamId, _Question] = OrderedDict()
        self._answers: list[TurnAnswer] = []
        # Questions that are being judged, and whether their answers are wanted still.
        self._running: dict[_Question, bool] = {}
        self._closing = False
        # Guards the fields above. Held for a few instructions only, never while the network runs.
        self._changed = threading.Condition()
        self._threads = [
            threading.Thread(target=self._work, name=f"smart-turn-{index}", daemon=True)
            for index in range(num_threads)
        ]
        for thread in self._threads:
            thread.start()

    def wake_with(self, on_answer: Callable[[], None]) -> None:
        """Set the callback that wakes the engine's thread; a pool thread calls it after each answer."""
        self._on_answer = on_answer

    @property
    def stats(self) -> SmartTurnStats:
        """Return a copy of the present counts."""
        with self._changed:
            stats = self._stats
            return SmartTurnStats(
                stats.asked,
                stats.complete,
                stats.incomplete,
                stats.refused,
                stats.late,
                stats.failed,
                stats.busy_s,
                len(self._queue) + len(self._running),
            )

    def ask(self, stream: StreamId, number: int, audio: NDArray[np.int16]) -> bool:
        """Queue a question in place of an older one of the stream; return False when the queue is full."""
        with self._changed:
            self._stats.asked += 1
            if stream not in self._queue and len(self._queue) >= self._max_queued:
                self._stats.refused += 1
                return False
            self._queue[stream] = _Question(stream, number, audio.copy())
            self._changed.notify_all()
            return True

    def answers(self) -> Sequence[TurnAnswer]:
        """Return the answers since the last call; never blocks."""
        if not self._answers:  # read without the lock: an answer that comes now is returned next time
            return ()
        with self._changed:
            answers, self._answers = self._answers, []
            return answers

    def count_late(self) -> None:
        """Count an answer that the stage has given up waiting for."""
        with self._changed:
            self._stats.late += 1

    def drop(self, stream: StreamId) -> None:
        """Drop the stream's questions.

        No answer to them comes any more: a stream that begins anew numbers its questions from 1 again.
        """
        with self._changed:
            self._queue.pop(stream, None)
            for question in self._running:
                if question.stream == stream:
                    self._running[question] = False
            self._answers = [answer for answer in self._answers if answer.stream != stream]

    def close(self, timeout_s: float = 5.0) -> None:
        """Stop the threads after their present questions; queued questions stay unanswered."""
        with self._changed:
            self._closing = True
            self._queue.clear()
            self._changed.notify_all()
        for thread in self._threads:
            thread.join(timeout_s)

    def _work(self) -> None:
        while True:
            with self._changed:
                while not self._queue and not self._closing:
                    self._changed.wait(1.0)
                if self._closing:
                    return
                _, question = self._queue.popitem(last=False)
                self._running[question] = True
            started_s = time.perf_counter()
            verdict = self._judge(question.audio)
            with self._changed:
                is_wanted = self._running.pop(question)
                self._stats.busy_s += time.perf_counter() - started_s
                match verdict:
                    case Verdict.COMPLETE:
                        self._stats.complete += 1
                    case Verdict.INCOMPLETE:
                        self._stats.incomplete += 1
                    case Verdict.ABSENT:
                        self._stats.failed += 1
                if is_wanted:
                    self._answers.append(TurnAnswer(question.stream, question.number, verdict))
                self._changed.notify_all()
            if self._on_answer is not None:
                self._on_answer()

    def _judge(self, audio: NDArray[np.int16]) -> Verdict:
        try:
            probability = self._model.probability(audio)
        except Exception:  # one question's failure must end neither the thread nor the stream
            logger.exception("smart-turn failed")
            return Verdict.ABSENT
        return Verdict.COMPLETE if probability >= self._threshold else Verdict.INCOMPLETE
