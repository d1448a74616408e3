"""The input and output of an endpointer: chunks, verdicts, questions and outcomes.

Positions are 16 kHz samples of the stream.
"""

from dataclasses import dataclass
from enum import Enum, StrEnum
from typing import Final

from common.hot_value import hot_value
from common.messages import LastState, TurnDetection

WINDOW_SAMPLES: Final = 512
"""Samples of one window of the speech detector."""


class Verdict(Enum):
    """Smart-turn's answer. ABSENT: it did not come in time, or could not be asked."""

    COMPLETE = "complete"
    INCOMPLETE = "incomplete"
    ABSENT = "absent"


class Cause(StrEnum):
    """Which rule ended an utterance."""

    EOU = "eou"
    SMART_TURN = "smart_turn"
    SILENCE = "silence"
    MAX_PAUSE = "max_pause"
    FINISHED = "finished"


@hot_value
class TurnChunk:
    """The findings of one chunk of audio.

    end_sample: 16 kHz samples of the stream up to the chunk's end; never less than the last chunk's.
    probs: probability of speech of every window of 512 samples that became complete.
    eou_samples: positions of `<EOU>` tokens; `token_sample(frame)` converts a token's frame.
    final: whether no more audio comes.
    """

    end_sample: int
    probs: tuple[float, ...] = ()
    eou_samples: tuple[int, ...] = ()
    final: bool = False


@dataclass(frozen=True, slots=True)
class TurnQuestion:
    """A question to smart-turn: whether the utterance that ends at `end_sample` is complete."""

    number: int
    end_sample: int


@dataclass(frozen=True, slots=True)
class TurnOutcome:
    """The turn fields of a result.

    decided_sample: position in the audio at which the start or end was decided; None for no event.
    speech_start_sample: start of the utterance's speech.
    speech_end_sample: end of it, for an `end_of_utterance`.
    cause: the rule that ended it.
    """

    last_state: LastState | None
    turn_detection: TurnDetection
    decided_sample: int | None = None
    speech_start_sample: int | None = None
    speech_end_sample: int | None = None
    cause: Cause | None = None

    @property
    def is_turn_event(self) -> bool:
        return self.decided_sample is not None


def token_sample(token_frame: int, samples_per_frame: int = 1_280) -> int:
    """Return the position of a token: the end of its absolute encoder frame."""
    return (token_frame + 1) * samples_per_frame
