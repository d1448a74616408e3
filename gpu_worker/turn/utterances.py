"""Finals of utterances: what `auto_finalize` adds to results.

An utterance's final comes when the audio up to `finalize_lag_ms` after its speech has been decoded, because
the model emits a word later than it was spoken; at the latest with the start of the next utterance or the
end of the stream. Its text is what the transcript has gained since the last final, cut where the chunk
ends: what stands in one is never changed or repeated by a later one. A mark of punctuation that comes later
still belongs to the words before it, and so does not open the next utterance's text.
"""

import re
from dataclasses import asdict, dataclass
from typing import Any, Final

from common.messages import Utterance
from gpu_worker.turn.endpointing import TurnOutcome
from gpu_worker.turn.settings import SAMPLES_PER_MS, TurnSettings

_SAMPLES_PER_S = 1_000 * SAMPLES_PER_MS
# Marks that close what stands before them. Those of Latin script only where no word follows at once: '.5'.
_LATE_MARKS: Final = re.compile(r"\s*([.,?!;:…]+(?=\s|$)|[。，、？！；：]+)")


@dataclass(frozen=True, slots=True)
class _Ended:
    start_sample: int
    end_sample: int
    due_sample: int


class UtteranceLog:
    """Utterances of one stream that have ended and whose final is due or was given.

    Args:
        settings: of the stream.
    """

    def __init__(self, settings: TurnSettings) -> None:
        self._lag_samples = settings.finalize_lag_ms * SAMPLES_PER_MS
        self._ended: list[_Ended] = []
        self._num_given = 0
        self._num_characters = 0

    def take(
        self, outcome: TurnOutcome, text: str, end_sample: int, *, is_final: bool
    ) -> tuple[Utterance, ...]:
        """The finals that a chunk's result carries: none, one, or at the end of the stream all that are left.

        Args:
            outcome: of the chunk.
            text: the transcript so far.
            end_sample: end of the chunk.
            is_final: whether the stream ends with it.
        """
        starts = outcome.turn_detection == "start_of_utterance"
        due = [ended for ended in self._ended if starts or is_final or ended.due_sample <= end_sample]
        self._ended = self._ended[len(due) :]
        if outcome.speech_end_sample is not None:
            assert outcome.speech_start_sample is not None
            due_sample = outcome.speech_end_sample + self._lag_samples
            ended = _Ended(outcome.speech_start_sample, outcome.speech_end_sample, due_sample)
            if is_final or due_sample <= end_sample:
                due.append(ended)
            else:
                self._ended.append(ended)
        return tuple(self._give(ended, text) for ended in due)

    def _give(self, ended: _Ended, text: str) -> Utterance:
        self._num_given += 1
        gained, self._num_characters = text[self._num_characters :], len(text)
        if self._num_given > 1 and (late := _LATE_MARKS.match(gained)):
            gained = gained[late.end() :]
        return Utterance(
            self._num_given,
            gained.strip(),
            ended.start_sample / _SAMPLES_PER_S,
            ended.end_sample / _SAMPLES_PER_S,
        )

    def export(self) -> dict[str, Any]:
        """The state as JSON values."""
        return {
            "ended": [asdict(ended) for ended in self._ended],
            "num_given": self._num_given,
            "num_characters": self._num_characters,
        }

    def load(self, state: dict[str, Any]) -> None:
        """Goes on from an exported state."""
        self._ended = [_Ended(**ended) for ended in state["ended"]]
        self._num_given = state["num_given"]
        self._num_characters = state["num_characters"]
