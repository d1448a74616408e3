"""Makes the outputs of streams from the findings of a step.

A row of a step is cut into pieces: one for each whole chunk, and one for the end of a stream. Every piece may
have an output; only pieces with something new cost Python time.

Shape suffixes: B rows of a step, P pieces, K symbols and W windows of a row, T tokens and V windows of all.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final, TypeVar

import numpy as np
from numpy.typing import NDArray

from gpu_worker.engine.interface import ENGINE_SAMPLE_RATE, EngineError, EngineStats, StreamOutput
from gpu_worker.engine.slots.clock import ChunkClock
from gpu_worker.engine.slots.sample_rings import SampleRings
from gpu_worker.engine.slots.slot_table import Plan, SlotTable
from gpu_worker.engine.steps import WINDOW_SAMPLES, StepFindings
from gpu_worker.engine.stream import OpenStreams, Stream
from gpu_worker.engine.transcript import NO_TOKENS, Tokens, chunk_output
from gpu_worker.engine.warm_up import WarmUps
from gpu_worker.turn.stage import TurnStage

# Fields of outputs of streams without turn detection.
_SILENCE: Final[NDArray[np.float32]] = np.zeros(0, dtype=np.float32)
_NO_WINDOWS: Final[list[int]] = []

_Item = TypeVar("_Item", bound=np.generic)


@dataclass(frozen=True, slots=True)
class Pieces:
    """The pieces of a plan's rows; those of one row are consecutive.

    `first_B` is the first piece of each row, and `last_B` the last one; `one_each`: whether every row is one
    piece, as nearly always. `row_P` is each piece's row, `is_final_P` says which pieces end their streams. A
    piece covers the samples `begin_P` .. `end_P` - 1.
    """

    one_each: bool
    first_B: NDArray[np.int64]
    last_B: NDArray[np.int64]
    row_P: NDArray[np.int64]
    is_final_P: NDArray[np.bool_]
    begin_P: NDArray[np.int64]
    end_P: NDArray[np.int64]

    @classmethod
    def of(cls, plan: Plan, clock: ChunkClock, fed_B: NDArray[np.int64]) -> Pieces:
        """Cut a plan's rows. `fed_B`: number of samples of each row's stream so far."""
        count_B = plan.chunks_B + plan.ends_B
        last_B = count_B.cumsum() - 1
        one_each = bool(last_B[-1] == len(count_B) - 1)
        if one_each:
            row_P = first_B = last_B
            is_final_P, frame_P = plan.ends_B, plan.start_B
        else:
            first_B = last_B - count_B + 1
            row_P = np.arange(len(count_B)).repeat(count_B)
            number_P = np.arange(len(row_P)) - first_B[row_P]
            is_final_P = number_P == plan.chunks_B[row_P]
            frame_P = plan.start_B[row_P] + number_P * clock.chunk_frames
        begin_P = clock.samples_of_frame_array(frame_P)
        end_P = clock.samples_of_frame_array(frame_P + clock.chunk_frames)
        if plan.has_ends:
            end_P = np.where(is_final_P, fed_B[row_P], end_P)
        return cls(one_each, first_B, last_B, row_P, is_final_P, begin_P, end_P)

    def of_rows(self, of_B: NDArray[_Item]) -> NDArray[_Item]:
        """Return the element of its row for each piece."""
        return of_B if self.one_each else of_B[self.row_P]


@dataclass(frozen=True, slots=True)
class StepText:
    """Tokens and speech of a step's pieces: those of piece p are `ids[first[p] : first[p + 1]]`.

    All arrays are converted to numbers at once. `frames` are absolute; `speech_V` are the probabilities as an
    array, for comparisons of all, and `speech` the same as numbers. There are windows only of rows with turn
    detection.
    """

    num_tokens_P: NDArray[np.int64]
    first_token: list[int]
    ids: tuple[int, ...]
    frames: tuple[int, ...]
    confidences: tuple[float, ...]
    num_windows_P: NDArray[np.int64]
    first_window: list[int]
    speech: list[float]
    speech_V: NDArray[np.float32]

    def tokens(self, piece: int) -> Tokens:
        """Return the tokens of a piece."""
        first, end = self.first_token[piece], self.first_token[piece + 1]
        if first == end:
            return NO_TOKENS
        at = slice(first, end)
        return Tokens(self.ids[at], self.frames[at], self.confidences[at])

    def windows(self, piece: int) -> list[float]:
        """Return the probabilities of speech of a piece's windows."""
        return self.speech[self.first_window[piece] : self.first_window[piece + 1]]

    def holds(self, token: int | None) -> NDArray[np.bool_]:
        """Return which pieces hold a token, [P]."""
        found = np.zeros(len(self.num_windows_P), dtype=np.bool_)
        if token is not None:
            at = (np.array(self.ids, dtype=np.int64) == token).nonzero()[0]
            found[np.searchsorted(self.first_token, at, side="right") - 1] = True
        return found

    @property
    def hears(self) -> bool:
        """Whether any row has turn detection."""
        return bool(self.first_window)

    @classmethod
    def of(
        cls,
        plan: Plan,
        found: StepFindings,
        pieces: Pieces,
        chunk_frames: int,
        listens_B: NDArray[np.bool_],
    ) -> StepText:
        """Sort a step's findings into its pieces."""
        most = int(found.num_symbols_B.max())
        row_T, column_T = (np.arange(most) < found.num_symbols_B[:, None]).nonzero()
        frame_T = found.frames_BK[row_T, column_T].astype(np.int64)
        tokens_P = found.num_symbols_B.astype(np.int64)
        if not pieces.one_each:
            piece_T = np.minimum(pieces.first_B[row_T] + frame_T // chunk_frames, pieces.last_B[row_T])
            tokens_P = np.bincount(piece_T, minlength=len(pieces.row_P))
        windows_P, first_window, speech_V = np.zeros(len(tokens_P), dtype=np.int64), _NO_WINDOWS, _SILENCE
        if listens_B.any():
            windows_P = pieces.end_P // WINDOW_SAMPLES - pieces.begin_P // WINDOW_SAMPLES
            windows_P *= pieces.of_rows(listens_B)
            windows_B = np.bincount(pieces.row_P, windows_P, len(listens_B))
            first_window = _starts(windows_P)
            speech_V = found.speech_BW[np.arange(found.speech_BW.shape[1]) < windows_B[:, None]]
        return cls(
            tokens_P,
            _starts(tokens_P),
            tuple(found.symbols_BK[row_T, column_T].tolist()),
            tuple((plan.start_B[row_T] + frame_T).tolist()),
            tuple(found.confidences_BK[row_T, column_T].tolist()),
            windows_P,
            first_window,
            speech_V.tolist(),
            speech_V,
        )


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
        self,
        plan: Plan,
        found: StepFindings,
        alive_B: NDArray[np.bool_],
        listens_B: NDArray[np.bool_],
        outputs: list[StreamOutput],
    ) -> list[Stream]:
        """Add the outputs of a step, except those that turn detection holds back; return the ended streams.

        Args:
            plan, found: the step and its findings.
            alive_B: rows whose streams are still open.
            listens_B: rows of those streams that have turn detection.
            outputs: the list to which they are added.
        """
        table, turns = self._table, self._turns
        pieces = Pieces.of(plan, table.clock, table.fed[plan.slots_B])
        text = StepText.of(plan, found, pieces, table.clock.chunk_frames, listens_B)
        self._stats.pre_encode.units += len(pieces.row_P)
        self._stats.turn_detection.units += len(text.speech_V)
        self._stats.tokens += len(text.ids)
        slot_P, listens_P = pieces.of_rows(plan.slots_B), pieces.of_rows(listens_B)
        is_steady_P = warms_P = np.zeros(len(slot_P), dtype=np.bool_)
        acknowledges_P = acknowledges(pieces)
        speaks_P = (text.num_tokens_P > 0) | acknowledges_P
        if text.hears:
            is_steady_P = self._is_steady(slot_P, listens_P, pieces, text)
            speaks_P |= listens_P & ~is_steady_P
        if plan.has_ends:
            speaks_P |= pieces.is_final_P
        if self._warm_ups:
            warms_P = self._warm_ups.is_warming_S[slot_P]
            speaks_P = np.where(warms_P, acknowledges_P, speaks_P)
        speaks_P &= pieces.of_rows(alive_B)
        chosen, ended = speaks_P.nonzero()[0], []
        columns = [slot_P, pieces.is_final_P, is_steady_P, listens_P, warms_P, pieces.begin_P, pieces.end_P]
        if len(chosen) < len(slot_P):
            columns = [column[chosen] for column in columns]
        for piece, slot, is_final, is_steady, listens, warms, begin, end in zip(
            chosen.tolist(), *[column.tolist() for column in columns], strict=True
        ):
            tokens = text.tokens(piece)
            if is_steady:
                turns.push_steady(slot, tokens, end)
                continue
            if listens:
                samples = self._rings.copy(slot, begin, end) if turns.slot_needs_samples(slot) else None
                turns.push_slot(slot, tokens, end, is_final, text.windows(piece), samples)
                continue
            state = self._by_slot[slot]
            assert state is not None
            if warms:
                outputs.append(chunk_output(state.stream, state.transcript, NO_TOKENS, end, is_final=False))
                continue
            state.transcript.add(tokens, ends=is_final)
            outputs.append(chunk_output(state.stream, state.transcript, tokens, end, is_final=is_final))
            if is_final:
                ended.append(state)
        return ended

    def _is_steady(
        self, slot_P: NDArray[np.int64], listens_P: NDArray[np.bool_], pieces: Pieces, text: StepText
    ) -> NDArray[np.bool_]:
        """Return which pieces cannot change a turn, [P]."""
        is_steady_P = np.zeros(len(slot_P), dtype=np.bool_)
        heard = listens_P.nonzero()[0]
        is_steady_P[heard] = self._turns.steady.take(
            slot_P[heard],
            pieces.end_P[heard],
            text.num_windows_P[heard],
            text.speech_V,
            ~(pieces.is_final_P | text.holds(self._turns.eou_id))[heard],
        )
        return is_steady_P


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
