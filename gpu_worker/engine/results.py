"""Makes the outputs of streams from the findings of a step.

A row of a step is cut into pieces: one for each whole chunk, and one for the end of a stream. Every piece may
have an output; only pieces with something new cost Python time.

Shape suffixes: B rows of a step, P pieces, K symbols and W windows of a row, T tokens and V windows of all.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TypeVar

import numpy as np
from numpy.typing import NDArray

from gpu_worker.engine.interface import ENGINE_SAMPLE_RATE, EngineError, EngineStats, StreamOutput
from gpu_worker.engine.slots.sample_rings import SampleRings
from gpu_worker.engine.slots.slot_table import Plan, SlotTable
from gpu_worker.engine.steps import WINDOW_SAMPLES, StepFindings
from gpu_worker.engine.stream import OpenStreams, Stream
from gpu_worker.engine.transcript import NO_TOKENS, Tokens, chunk_output
from gpu_worker.engine.warm_up import WarmUps
from gpu_worker.turn.stage import TurnStage

_Item = TypeVar("_Item", bound=np.generic)


@dataclass(frozen=True, slots=True)
class Pieces:
    """The pieces of a plan's rows; those of one row are consecutive.

    `first_B` is the first piece of each row, and `last_B` the last one; `one_each`: whether every row is one
    piece, as nearly always. `row_P` and `slot_P` are each piece's row and slot, `is_final_P` says which
    pieces end their streams. A piece covers the samples `begin_P` .. `end_P` - 1.
    """

    one_each: bool
    first_B: NDArray[np.int64]
    last_B: NDArray[np.int64]
    row_P: NDArray[np.int64]
    slot_P: NDArray[np.int64]
    is_final_P: NDArray[np.bool_]
    begin_P: NDArray[np.int64]
    end_P: NDArray[np.int64]

    @classmethod
    def of(cls, plan: Plan, table: SlotTable) -> Pieces:
        """Cut a plan's rows."""
        clock = table.clock
        if plan.one_each:
            row = np.arange(len(plan.slots_B))
            begin = clock.samples_of_frame_array(plan.start_B)
            end = clock.samples_of_frame_array(plan.start_B + clock.chunk_frames)
            return cls(True, row, row, row, plan.slots_B, plan.ends_B, begin, end)
        count_B = plan.chunks_B + plan.ends_B
        last_B = count_B.cumsum() - 1
        first_B = last_B - count_B + 1
        row_P = np.arange(len(count_B)).repeat(count_B)
        number_P = np.arange(len(row_P)) - first_B[row_P]
        is_final_P = number_P == plan.chunks_B[row_P]
        frame_P = plan.start_B[row_P] + number_P * clock.chunk_frames
        begin_P = clock.samples_of_frame_array(frame_P)
        end_P = clock.samples_of_frame_array(frame_P + clock.chunk_frames)
        slot_P = plan.slots_B[row_P]
        end_P = np.where(is_final_P, table.fed[slot_P], end_P)
        return cls(False, first_B, last_B, row_P, slot_P, is_final_P, begin_P, end_P)

    def of_rows(self, of_B: NDArray[_Item]) -> NDArray[_Item]:
        """Return the element of its row for each piece."""
        return of_B if self.one_each else of_B[self.row_P]


@dataclass(frozen=True, slots=True)
class StepText:
    """Tokens of a step's pieces: those of piece p are `ids[first[p] : first[p + 1]]`.

    All arrays are converted to numbers at once. `frames` are absolute.
    """

    num_tokens_P: NDArray[np.int64]
    first: list[int]
    ids: tuple[int, ...]
    frames: tuple[int, ...]
    confidences: tuple[float, ...]

    @classmethod
    def of(cls, plan: Plan, found: StepFindings, pieces: Pieces, chunk_frames: int) -> StepText:
        """Sort a step's tokens into its pieces."""
        most = int(found.num_symbols_B.max(initial=0))
        row_T, column_T = (np.arange(most) < found.num_symbols_B[:, None]).nonzero()
        frame_T = found.frames_BK[row_T, column_T].astype(np.int64)
        tokens_P = found.num_symbols_B.astype(np.int64)
        if not pieces.one_each:
            piece_T = np.minimum(pieces.first_B[row_T] + frame_T // chunk_frames, pieces.last_B[row_T])
            tokens_P = np.bincount(piece_T, minlength=len(pieces.row_P))
        return cls(
            tokens_P,
            _starts(tokens_P),
            tuple(found.symbols_BK[row_T, column_T].tolist()),
            tuple((plan.start_B[row_T] + frame_T).tolist()),
            tuple(found.confidences_BK[row_T, column_T].tolist()),
        )

    def tokens(self, piece: int) -> Tokens:
        """Return the tokens of a piece."""
        first, end = self.first[piece], self.first[piece + 1]
        if first == end:
            return NO_TOKENS
        at = slice(first, end)
        return Tokens(self.ids[at], self.frames[at], self.confidences[at])

    def holds(self, token: int | None) -> NDArray[np.bool_]:
        """Return which pieces hold a token, [P]."""
        found = np.zeros(len(self.num_tokens_P), dtype=np.bool_)
        if token is not None:
            at = (np.array(self.ids, dtype=np.int64) == token).nonzero()[0]
            found[np.searchsorted(self.first, at, side="right") - 1] = True
        return found


@dataclass(frozen=True, slots=True)
class StepSpeech:
    """Probabilities of speech in the windows that a step's pieces complete.

    Those of piece p are `speech[first[p] : first[p + 1]]`; there are none of rows without turn detection.
    """

    num_windows_P: NDArray[np.int64]
    first: list[int]
    speech: list[float]
    speech_V: NDArray[np.float32]

    @classmethod
    def of(cls, found: StepFindings, pieces: Pieces, listens_P: NDArray[np.bool_]) -> StepSpeech:
        """Sort the windows of a step's pieces with turn detection."""
        windows_P = pieces.end_P // WINDOW_SAMPLES - pieces.begin_P // WINDOW_SAMPLES
        windows_P *= listens_P
        windows_B = np.bincount(pieces.row_P, windows_P, len(found.speech_BW))
        speech_V = found.speech_BW[np.arange(found.speech_BW.shape[1]) < windows_B[:, None]]
        return cls(windows_P, _starts(windows_P), speech_V.tolist(), speech_V)

    def windows(self, piece: int) -> list[float]:
        """Return the probabilities of speech of a piece's windows."""
        return self.speech[self.first[piece] : self.first[piece + 1]]


class Outputs:
    """Makes the outputs of the pieces of steps.

    Args:
        streams: the open streams.
        table, rings: their samples.
        turns: their turn detection.
        warm_ups: slots whose rows have no outputs yet.
        stats: counts pieces and windows.
    """

    def __init__(
        self,
        streams: OpenStreams,
        table: SlotTable,
        rings: SampleRings,
        turns: TurnStage,
        warm_ups: WarmUps,
        stats: EngineStats,
    ) -> None:
        self._by_slot = streams.by_slot
        self._table = table
        self._rings = rings
        self._turns = turns
        self._warm_ups = warm_ups
        self._stats = stats

    def add(
        self, plan: Plan, found: StepFindings, listens_B: NDArray[np.bool_], outputs: list[StreamOutput]
    ) -> list[Stream]:
        """Add the outputs of a step, except those that turn detection holds back; return the ended streams.

        Args:
            plan, found: rows of the step whose streams are still open, and their findings.
            listens_B: rows that have turn detection.
            outputs: the list to which they are added.
        """
        pieces = Pieces.of(plan, self._table)
        if self._warm_ups:
            # Their tokens were told before.
            warms_B = self._warm_ups.is_warming_S[plan.slots_B]
            found = replace(found, num_symbols_B=np.where(warms_B, 0, found.num_symbols_B))
        text = StepText.of(plan, found, pieces, self._table.clock.chunk_frames)
        self._stats.pre_encode.units += len(pieces.row_P)
        self._stats.tokens += len(text.ids)
        speaks_P = (text.num_tokens_P > 0) | acknowledges(pieces) | pieces.is_final_P
        if listens_B.any():
            listens_P = pieces.of_rows(listens_B)
            speech = StepSpeech.of(found, pieces, listens_P)
            self._hear(pieces, text, speech, listens_P.nonzero()[0], speaks_P)
            speaks_P &= ~listens_P
        chosen, ended = speaks_P.nonzero()[0], []
        columns = [chosen, pieces.slot_P[chosen], pieces.end_P[chosen], pieces.is_final_P[chosen]]
        for piece, slot, end, is_final in zip(*[column.tolist() for column in columns], strict=True):
            state, tokens = self._by_slot[slot], text.tokens(piece)
            assert state is not None
            state.transcript.add(tokens, ends=is_final)
            outputs.append(chunk_output(state.stream, state.transcript, tokens, end, is_final))
            if is_final:
                ended.append(state)
        return ended

    def _hear(
        self,
        pieces: Pieces,
        text: StepText,
        speech: StepSpeech,
        heard: NDArray[np.int64],
        speaks_P: NDArray[np.bool_],
    ) -> None:
        """Pass pieces on to turn detection: those that may change a turn, and of the others those that speak.

        Args:
            heard: the pieces of streams with turn detection.
            speaks_P: pieces that have something new beside their turns.
        """
        turns = self._turns
        self._stats.turn_detection.units += len(speech.speech_V)
        is_steady = turns.steady.take(
            pieces.slot_P[heard],
            pieces.end_P[heard],
            speech.num_windows_P[heard],
            speech.speech_V,
            ~(pieces.is_final_P | text.holds(turns.eou_id))[heard],
        )
        is_passed = speaks_P[heard] | ~is_steady
        heard, is_steady = heard[is_passed], is_steady[is_passed]
        of_pieces = (pieces.slot_P, pieces.is_final_P, pieces.begin_P, pieces.end_P)
        columns = [heard, is_steady, *[column[heard] for column in of_pieces]]
        for piece, steady, slot, is_final, begin, end in zip(
            *[column.tolist() for column in columns], strict=True
        ):
            tokens = text.tokens(piece)
            if steady:
                turns.push_steady(slot, tokens, end)
            else:
                samples = self._rings.copy(slot, begin, end) if turns.slot_needs_samples(slot) else None
                turns.push_slot(slot, tokens, end, is_final, speech.windows(piece), samples)


def _starts(counts: NDArray[np.int64]) -> list[int]:
    starts: list[int] = [0, *counts.cumsum().tolist()]
    return starts


def acknowledges(pieces: Pieces) -> NDArray[np.bool_]:
    """Return the pieces in which a second of audio ends, [P]."""
    found: NDArray[np.bool_] = pieces.begin_P // ENGINE_SAMPLE_RATE < pieces.end_P // ENGINE_SAMPLE_RATE
    return found


def failed_output(state: Stream, samples_decoded: int, error: EngineError) -> StreamOutput:
    """Return the last output of a stream that the engine had to end."""
    return StreamOutput(
        stream=state.stream,
        samples_decoded=samples_decoded,
        token_ids=(),
        confidence_scores=(),
        token_frames=(),
        text=state.transcript.text,
        last_state=None,
        turn_detection="running",
        is_final=False,
        is_turn_event=False,
        words=None,
        changed=True,
        failed=error,
    )
