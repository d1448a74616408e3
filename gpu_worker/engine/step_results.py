"""What a step found, turned into outputs: only rows that have something to say cost Python.

Shape suffixes: B rows of the step.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
from numpy.typing import NDArray

from gpu_worker.engine.interface import StreamOutput
from gpu_worker.engine.outputs import chunk_output
from gpu_worker.engine.pipelined_stream import PipelinedStream
from gpu_worker.engine.sample_rings import SampleRings
from gpu_worker.engine.slot_table import Plan
from gpu_worker.engine.steps import StepFindings
from gpu_worker.engine.transcript import Token
from gpu_worker.turn.stage import TurnStage
from gpu_worker.turn.vad import windows_of


class StepResults:
    """Makes outputs of a step's rows.

    Args:
        by_slot: the engine's streams.
        rings, turns: where audio and turns are.
        eou_id: the token that ends an utterance.
        forget: called with a stream whose final output was made and whose turns nobody detects.
    """

    def __init__(
        self,
        by_slot: Sequence[PipelinedStream | None],
        rings: SampleRings,
        turns: TurnStage,
        eou_id: int | None,
        forget: Callable[[PipelinedStream], None],
    ) -> None:
        self._by_slot = by_slot
        self._rings, self._turns = rings, turns
        self._eou_id = eou_id
        self._forget = forget

    def read(
        self,
        plan: Plan,
        found: StepFindings,
        rows: NDArray[np.int64],
        begin_B: NDArray[np.int64],
        end_B: NDArray[np.int64],
        total_B: NDArray[np.int64],
        outputs: list[StreamOutput],
    ) -> None:
        """Append the outputs of `rows`, those that have something to say, or hand them to turn detection.

        `begin_B`, `end_B` are the samples that a row's frames cover, `total_B` those of its stream.
        Numbers leave their arrays all at once.
        """
        counts = found.num_symbols_B[rows]
        most = int(counts.max(initial=0))
        for row, slot, count, start, first, last, total, ends, whole, symbols, frames, scores in zip(
            rows.tolist(),
            plan.slots_B[rows].tolist(),
            counts.tolist(),
            plan.start_B[rows].tolist(),
            begin_B[rows].tolist(),
            end_B[rows].tolist(),
            total_B[rows].tolist(),
            plan.ends_B[rows].tolist(),
            plan.whole_B[rows].tolist(),
            found.symbols_BK[rows, :most].tolist(),
            found.frames_BK[rows, :most].tolist(),
            found.confidences_BK[rows, :most].tolist(),
            strict=True,
        ):
            state = self._by_slot[slot]
            assert state is not None
            stream, transcript = state.stream, state.transcript
            tokens = [Token(symbols[at], start + frames[at], scores[at]) for at in range(count)]
            made: list[StreamOutput] = []
            if whole:
                made.append(chunk_output(stream, transcript, tokens, last, is_final=False))
                tokens = []
            if ends:
                made.append(chunk_output(stream, transcript, tokens, total, is_final=True))
            if state.listens:
                speech = found.speech_BW[row, : int(found.num_windows_B[row])].tolist()
                self._push(state, made, speech, first)
                continue
            outputs += made
            if ends:
                self._forget(state)

    def _push(
        self, state: PipelinedStream, made: list[StreamOutput], speech: list[float], begin: int
    ) -> None:
        """Hand a row's outputs to turn detection, each with its windows."""
        needs_audio = self._turns.needs_samples(state.stream)
        for output in made:
            windows = windows_of(begin, output.samples_decoded)
            self._turns.push(
                output,
                speech[:windows],
                [
                    frame
                    for token, frame in zip(output.token_ids, output.token_frames, strict=True)
                    if token == self._eou_id
                ],
                self._rings.copy(state.slot, begin, output.samples_decoded) if needs_audio else None,
            )
            speech, begin = speech[windows:], output.samples_decoded
