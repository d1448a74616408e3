"""Finals of utterances, which `auto_finalize` adds to results.

An utterance's final holds the words of its time, however the audio is cut into chunks. The model emits a word
later than it was spoken. So the final comes when the audio up to `finalize_lag_ms` after the speech has been
decoded and its last word has ended, or with the model's own mark after the speech: `<EOU>` comes after the
last word. At the latest it comes with the end of the stream. Words of the next utterance that were emitted by
then are recognised by their positions.

Finals join to the transcript: a word that comes later still, or outside of every utterance, is part of the
next final. A later final never changes or repeats the text of an earlier one. A punctuation mark that comes
later still belongs to the words before it, and so does not open the next utterance's text.
"""

from collections import deque
from dataclasses import asdict, dataclass
from typing import Any, Final

from common.late_marks import without_late_marks
from common.messages import Utterance
from gpu_worker.engine.transcript import Transcript
from gpu_worker.turn.outcome import TurnOutcome, token_sample
from gpu_worker.turn.settings import SAMPLES_PER_MS, TurnSettings

_SAMPLES_PER_S = 1_000 * SAMPLES_PER_MS
# Longest time from the end of speech to the first token of its last word, and shortest time from the start of
# an utterance to the first token of its first word. Measured with tiny on 60 pairs of prompts, at chunks of
# 80 to 1,120 ms: at most 352 ms and at least 288.
_LAST_WORD_SAMPLES: Final = 360 * SAMPLES_PER_MS
_FIRST_WORD_SAMPLES: Final = 280 * SAMPLES_PER_MS
# A word that never ends must not hold a final back for ever.
_MAX_WAIT_SAMPLES: Final = 2_000 * SAMPLES_PER_MS
# Words that begin between the speech of an utterance and its final, and more.
_MAX_STARTS: Final = 256


@dataclass(frozen=True, slots=True)
class _Ended:
    start_sample: int
    end_sample: int
    due_sample: int


class UtteranceLog:
    """Utterances of one stream that have ended and whose final is to come, and the starts of words since.

    Args:
        settings: settings of the stream.
    """

    def __init__(self, settings: TurnSettings) -> None:
        self._lag_samples = settings.finalize_lag_ms * SAMPLES_PER_MS
        self._ended: deque[_Ended] = deque()
        self._open_sample: int | None = None
        self._starts: deque[tuple[int, int]] = deque(maxlen=_MAX_STARTS)
        self._num_given = 0
        self._num_characters = 0

    @property
    def is_waiting(self) -> bool:
        """Whether the final of an utterance is to come."""
        return bool(self._ended)

    def take(
        self,
        outcome: TurnOutcome,
        transcript: Transcript,
        end_sample: int,
        *,
        onset_sample: int | None,
        is_final: bool,
    ) -> tuple[Utterance, ...]:
        """Return the finals that a result carries: none, one, or at the end of the stream all that are left.

        Args:
            outcome: the turn fields of the result.
            transcript: transcript up to `end_sample`. A word that ends with a final is closed in it.
            end_sample: end of the audio that the result covers.
            onset_sample: start of speech that may still become an utterance.
            is_final: whether the stream ends with it.
        """
        for start in transcript.take_starts():
            self._starts.append((token_sample(start.frame), start.offset))
        if outcome.turn_detection == "start_of_utterance":
            self._open_sample = outcome.speech_start_sample
        elif outcome.speech_end_sample is not None:
            assert outcome.speech_start_sample is not None
            self._open_sample = None
            due_sample = outcome.speech_end_sample + self._lag_samples
            self._ended.append(_Ended(outcome.speech_start_sample, outcome.speech_end_sample, due_sample))
        given: list[Utterance] = []
        while self._ended and (is_final or self._is_due(transcript, end_sample)):
            limit = self._limit(onset_sample)
            word = _open_word(transcript)
            if word is not None and (limit is None or word[0] <= limit):
                waits = end_sample - word[1] < self._lag_samples
                if waits and not is_final and end_sample - self._ended[0].due_sample < _MAX_WAIT_SAMPLES:
                    break
                transcript.close_word()
            given.append(self._give(transcript.text, limit))
        return tuple(given)

    def _is_due(self, transcript: Transcript, end_sample: int) -> bool:
        """Return whether no more words of the oldest utterance are expected."""
        ended, mark_frame = self._ended[0], transcript.mark_frame
        if mark_frame is not None and token_sample(mark_frame) > ended.end_sample:
            return True  # the model's own mark has come
        return ended.due_sample <= end_sample

    def _limit(self, onset_sample: int | None) -> int | None:
        """Return the last position of a word of the oldest utterance; None if no speech has followed it."""
        if len(self._ended) > 1:
            next_sample: int | None = self._ended[1].start_sample
        else:
            next_sample = onset_sample if self._open_sample is None else self._open_sample
        if next_sample is None:
            return None
        last_sample = self._ended[0].end_sample + _LAST_WORD_SAMPLES
        return min(max(last_sample, next_sample), next_sample + _FIRST_WORD_SAMPLES)

    def _give(self, text: str, limit: int | None) -> Utterance:
        ended = self._ended.popleft()
        self._num_given += 1
        starts = self._starts
        while starts and (limit is None or starts[0][0] <= limit):
            starts.popleft()
        end = starts[0][1] if starts else len(text)
        gained, self._num_characters = text[self._num_characters : end], end
        if self._num_given > 1:
            gained = without_late_marks(gained)
        return Utterance(
            self._num_given,
            gained.strip(),
            ended.start_sample / _SAMPLES_PER_S,
            ended.end_sample / _SAMPLES_PER_S,
        )

    def export(self) -> dict[str, Any]:
        """Return the state as JSON values."""
        return {
            "ended": [asdict(ended) for ended in self._ended],
            "open_sample": self._open_sample,
            "starts": list(self._starts),
            "num_given": self._num_given,
            "num_characters": self._num_characters,
        }

    def load(self, state: dict[str, Any]) -> None:
        """Load an exported state."""
        self._ended.extend(_Ended(**ended) for ended in state["ended"])
        self._open_sample = state["open_sample"]
        self._starts.extend((sample, offset) for sample, offset in state["starts"])
        self._num_given = state["num_given"]
        self._num_characters = state["num_characters"]


def _open_word(transcript: Transcript) -> tuple[int, int] | None:
    """Return the positions of the first and of the last token of the incomplete word, or None."""
    frames = transcript.open_frames
    return None if frames is None else (token_sample(frames[0]), token_sample(frames[1]))
