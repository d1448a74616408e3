"""Steady chunks, which change nothing, handled for all streams of a step at once.

Most chunks are speech in the midst of speech, or silence between utterances or in a pause: no window changes
the state of the stream, and the result has the same turn fields as the last one. Such a stream is steady. Its
chunks are compared with its thresholds as arrays; only their sums are kept, until something changes and the
stream's `Endpointer` takes them all at once.

Shape suffixes: S slots, P pieces of a step (chunks, in order of their rows), V their windows.
"""

from enum import IntEnum
from typing import Final

import numpy as np
from numpy.typing import NDArray

from gpu_worker.turn.endpointing import Endpointer
from gpu_worker.turn.outcome import WINDOW_SAMPLES
from gpu_worker.turn.settings import TurnSettings
from gpu_worker.turn.transitions import State


class Steadiness(IntEnum):
    """The kind of chunks that change nothing in a slot."""

    NONE = 0
    SPEECH = 1
    SILENCE = 2


_OF_STATE: Final = {
    State.SPEAKING: Steadiness.SPEECH,
    State.IDLE: Steadiness.SILENCE,
    State.PAUSED: Steadiness.SILENCE,
}
_FOR_EVER: Final = np.iinfo(np.int64).max


class SteadyTurns:
    """The turn state of every slot's stream, as arrays.

    Args:
        num_slots: slots of the engine.
    """

    def __init__(self, num_slots: int) -> None:
        self._steadiness_S = np.zeros(num_slots, dtype=np.int8)
        self._speech_level_S = np.zeros(num_slots)
        self._silence_level_S = np.zeros(num_slots)
        # Position from which a window of silence may change the state.
        self._until_S = np.zeros(num_slots, dtype=np.int64)
        self._windows_S = np.zeros(num_slots, dtype=np.int64)
        self._end_sample_S = np.full(num_slots, -1, dtype=np.int64)
        # An item of an array costs three times as much time.
        self._steadiness = memoryview(self._steadiness_S)  # type: ignore[arg-type]
        self._until = memoryview(self._until_S)  # type: ignore[arg-type]
        self._windows = memoryview(self._windows_S)  # type: ignore[arg-type]
        self._end_sample = memoryview(self._end_sample_S)  # type: ignore[arg-type]

    def open(self, slot: int, settings: TurnSettings) -> None:
        """Open a slot for a stream with these settings; all of its chunks have to be read at first."""
        self.drop(slot)
        self._speech_level_S[slot] = settings.vad_threshold
        self._silence_level_S[slot] = settings.vad_threshold - settings.vad_margin

    def note(self, slot: int, endpointer: Endpointer | None) -> None:
        """Update the slot with the state of its endpointer; None: all chunks have to be read."""
        steadiness = Steadiness.NONE
        if endpointer is not None and endpointer.has_heard:
            steadiness = _OF_STATE.get(endpointer.state, Steadiness.NONE)
            if steadiness is Steadiness.SILENCE:
                until = endpointer.silent_until
                self._until[slot] = _FOR_EVER if until is None else until
        self._steadiness[slot] = steadiness

    def drop(self, slot: int) -> None:
        """Forget the slot's stream."""
        self._steadiness[slot] = Steadiness.NONE
        self._windows[slot] = 0
        self._end_sample[slot] = -1

    def take(
        self,
        slot_P: NDArray[np.int64],
        end_sample_P: NDArray[np.int64],
        num_windows_P: NDArray[np.int64],
        speech_V: NDArray[np.float32],
        is_open_P: NDArray[np.bool_],
    ) -> NDArray[np.bool_]:
        """Take the chunks that change nothing; the others have to be read, in order.

        Args:
            slot_P: slot of each chunk; chunks of one stream are consecutive.
            end_sample_P: end of each chunk.
            num_windows_P: number of windows that it completes.
            speech_V: speech probabilities of the windows.
            is_open_P: whether the chunk has neither an `<EOU>` nor the stream's end, and may be taken.

        Returns:
            Which chunks were taken: the first ones of each stream, up to one that is not.
        """
        steadiness_P = self._steadiness_S[slot_P]
        quietest_P, loudest_P = _extremes(num_windows_P, speech_V)
        is_speech_P = (steadiness_P == Steadiness.SPEECH) & (quietest_P >= self._speech_level_S[slot_P])
        last_window_P = end_sample_P // WINDOW_SAMPLES * WINDOW_SAMPLES
        is_silence_P = (steadiness_P == Steadiness.SILENCE) & (loudest_P < self._silence_level_S[slot_P])
        is_silence_P &= last_window_P < self._until_S[slot_P]
        is_taken_P: NDArray[np.bool_] = is_open_P & (is_speech_P | is_silence_P)
        is_first_P = np.ones(len(slot_P), dtype=np.bool_)
        np.not_equal(slot_P[1:], slot_P[:-1], out=is_first_P[1:])
        if is_first_P.all():  # nearly always there is one chunk a stream
            slots = slot_P[is_taken_P]
            self._windows_S[slots] += num_windows_P[is_taken_P]
        else:
            is_taken_P = _first_ones(is_taken_P, is_first_P)
            slots = slot_P[is_taken_P]
            np.add.at(self._windows_S, slots, num_windows_P[is_taken_P])
        # Of several chunks of one slot the last is written last.
        self._end_sample_S[slots] = end_sample_P[is_taken_P]
        return is_taken_P

    def settle(self, slot: int, endpointer: Endpointer) -> None:
        """Pass the taken chunks to the endpointer."""
        end_sample = self._end_sample[slot]
        if end_sample >= 0:
            endpointer.skip(self._windows[slot], end_sample)
            self._windows[slot] = 0
            self._end_sample[slot] = -1


def _first_ones(is_steady_P: NDArray[np.bool_], is_first_P: NDArray[np.bool_]) -> NDArray[np.bool_]:
    """Return each stream's steady chunks up to its first that is not, after which the state may change.

    is_first_P: the first chunk of a stream.
    """
    is_read_P = ~is_steady_P
    num_read_P = is_read_P.cumsum()
    before_stream_P = (num_read_P - is_read_P)[is_first_P][is_first_P.cumsum() - 1]
    is_taken_P: NDArray[np.bool_] = num_read_P == before_stream_P
    return is_taken_P


def _extremes(
    num_windows_P: NDArray[np.int64], speech_V: NDArray[np.float32]
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Least and largest probability of each chunk; without a window it is as quiet and as loud as may be."""
    first = num_windows_P.cumsum() - num_windows_P
    has_windows = num_windows_P > 0
    if has_windows.all() and len(first):
        return np.minimum.reduceat(speech_V, first), np.maximum.reduceat(speech_V, first)
    quietest, loudest = np.full(len(first), np.inf), np.full(len(first), -np.inf)
    if has_windows.any():
        first = first[has_windows]
        quietest[has_windows] = np.minimum.reduceat(speech_V, first)
        loudest[has_windows] = np.maximum.reduceat(speech_V, first)
    return quietest, loudest
