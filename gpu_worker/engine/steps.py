"""What runs a planned step on the device: given rows of numbers, later gives rows of symbols.

`launch` starts a step and `wait` brings back what it found; between the two the host is free, and a
second step may be launched before the first was waited for.  `EagerSteps` is the plain model, run at
once; `cuda_graphs.GraphSteps` replays captured graphs.

Shape suffixes: F fields of a row, B rows of the step, M pages of a ring, K most symbols of a row,
W windows of the speech detector.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass
from enum import IntEnum
from typing import Final, Protocol

import numpy as np
import torch
from numpy.typing import NDArray

from gpu_worker.engine.clock import ChunkClock
from gpu_worker.engine.interface import EngineStats
from gpu_worker.model.model import UNKNOWN_END as MODEL_UNKNOWN_END
from gpu_worker.model.model import StepInputs, StreamingModel
from gpu_worker.model.state import KVPages, SlotState
from gpu_worker.turn.vad import WINDOW_SAMPLES, SileroVad

# Total samples of a stream whose end is not known; more than any stream has, and sound in int32.
UNKNOWN_END: Final = 1 << 30
# A stream's end may leave samples that complete no further frame: less than two mel hops.
SPARE_HOPS: Final = 2


class Field(IntEnum):
    """Rows of the integers that describe a step, int32 [F, B].

    START is the first encoder frame, FRAMES the valid ones (0 for none), TOTAL the stream's samples or
    UNKNOWN_END, HEARD how many of the row's samples the speech detector takes (0 for none).
    """

    SLOT = 0
    START = 1
    FRAMES = 2
    TOTAL = 3
    HEARD = 4


@dataclass(frozen=True, slots=True)
class StepFindings:
    """What a step found, on the host.

    num_symbols_B; of each row the symbols, their frames (from the row's first on) and confidences
    [B, K], valid up to its number; speech probabilities [B, W] and how many windows are valid.  The
    arrays may be views that the launch after the next one overwrites.
    """

    num_symbols_B: NDArray[np.int32]
    symbols_BK: NDArray[np.int32]
    frames_BK: NDArray[np.int32]
    confidences_BK: NDArray[np.float32]
    speech_BW: NDArray[np.float32]
    num_windows_B: NDArray[np.int32]


@dataclass(frozen=True, slots=True)
class Flight:
    """A launched step; `token` is the runner's own."""

    num_rows: int
    token: object


class Steps(Protocol):
    """Runs steps of one chunk a row."""

    state: SlotState
    pages: KVPages
    vad: SileroVad | None
    ring_SC: NDArray[np.float32]
    """Host memory of every slot's samples: sample n of a stream stands at n modulo C."""
    max_rows: int

    def reset(self, slots: Sequence[int]) -> None:
        """Give slots to new streams, behind the steps that were launched before."""
        ...

    def launch(self, rows_FB: NDArray[np.int32], table_BM: NDArray[np.int32]) -> Flight:
        """Start a step.  The samples that its rows name stand in the ring until it was waited for."""
        ...

    def wait(self, flight: Flight) -> StepFindings:
        """Wait for the oldest flight and count its stages' time."""
        ...


def max_windows(num_columns: int) -> int:
    """Most speech windows that a row of so many samples can complete."""
    return -(-num_columns // WINDOW_SAMPLES)


class EagerSteps:
    """The plain model, run when a step is launched; for CPU and for tests."""

    def __init__(
        self,
        model: StreamingModel,
        clock: ChunkClock,
        *,
        num_slots: int,
        num_pages: int,
        page_frames: int,
        ring_samples: int,
        max_rows: int,
        vad: SileroVad | None,
        stats: EngineStats,
    ) -> None:
        self.state = model.make_state(num_slots)
        self.pages = KVPages.for_model(model, num_pages, page_frames)
        self.vad = vad
        self.ring_SC = np.zeros((num_slots + 1, ring_samples), dtype=np.float32)
        self.max_rows = max_rows
        self._model = model
        self._clock = clock
        self._stats = stats

    @torch.inference_mode()
    def reset(self, slots: Sequence[int]) -> None:
        self.state.reset(torch.tensor(slots))
        if self.vad is not None:
            for slot in slots:
                self.vad.reset(slot)

    @torch.inference_mode()
    def launch(self, rows_FB: NDArray[np.int32], table_BM: NDArray[np.int32]) -> Flight:
        clock, model, stats = self._clock, self._model, self._stats
        num_rows = rows_FB.shape[1]
        rows = torch.from_numpy(rows_FB.astype(np.int64))
        total = rows[Field.TOTAL]
        first_B = clock.frame_samples * (rows_FB[Field.START].astype(np.int64) - 1) + clock.lookahead_samples
        columns = np.arange(clock.chunk_samples + SPARE_HOPS * clock.hop_samples)
        sample_BN = first_B[:, None] + columns
        audio = self.ring_SC[rows_FB[Field.SLOT][:, None], sample_BN % self.ring_SC.shape[1]]
        audio *= (sample_BN >= 0) & (sample_BN < rows_FB[Field.TOTAL][:, None])
        audio_BN = torch.from_numpy(audio)
        inputs = StepInputs(
            samples_BN=audio_BN[:, : clock.chunk_samples],
            slots_B=rows[Field.SLOT],
            start_B=rows[Field.START],
            num_frames_B=rows[Field.FRAMES],
            total_samples_B=torch.where(total == UNKNOWN_END, MODEL_UNKNOWN_END, total),
            block_table_BM=torch.from_numpy(table_BM),
            edges=bool((rows_FB[Field.START] == 0).any() or (rows_FB[Field.TOTAL] != UNKNOWN_END).any()),
            full=bool((rows_FB[Field.FRAMES] == clock.chunk_frames).all()),
        )
        times = [time.perf_counter()]
        x = model.pre_encode(inputs, self.state)
        times.append(time.perf_counter())
        encoded = model.encode(x, inputs, self.state, self.pages)
        times.append(time.perf_counter())
        emissions = model.decode(encoded, inputs, self.state)
        times.append(time.perf_counter())
        most = clock.chunk_frames * model.config.max_symbols
        symbols = np.zeros((3, num_rows, most))
        count = np.zeros(num_rows, dtype=np.int32)
        if emissions is not None:
            rounds = (emissions.token_EB, emissions.frame_EB, emissions.confidence_EB)
            for token_B, frame_B, confidence_B in zip(*(part.numpy() for part in rounds), strict=True):
                emits = np.flatnonzero(token_B >= 0)
                at = count[emits]
                for part, value_B in zip(symbols, (token_B, frame_B, confidence_B), strict=True):
                    part[emits, at] = value_B[emits]
                count[emits] += 1
        for stage, begin, end in zip(
            (stats.pre_encode, stats.encode, stats.decode), times[:-1], times[1:], strict=True
        ):
            stage.calls += 1
            stage.busy_s += end - begin
        speech, windows = self._listen(audio_BN, first_B, rows)
        findings = StepFindings(
            count,
            symbols[0].astype(np.int32),
            symbols[1].astype(np.int32),
            symbols[2].astype(np.float32),
            speech,
            windows,
        )
        return Flight(num_rows, findings)

    def _listen(
        self, audio_BN: torch.Tensor, first_B: NDArray[np.int64], rows: torch.Tensor
    ) -> tuple[NDArray[np.float32], NDArray[np.int32]]:
        heard = rows[Field.HEARD]
        width = max_windows(audio_BN.shape[1])
        if self.vad is None or not bool(heard.any()):
            num_rows = audio_BN.shape[0]
            return np.zeros((num_rows, width), dtype=np.float32), np.zeros(num_rows, dtype=np.int32)
        started = time.perf_counter()
        lead = torch.from_numpy(np.maximum(0, -first_B))
        index = torch.arange(audio_BN.shape[1]) + lead.unsqueeze(1)
        audio = audio_BN.gather(1, index.clamp_(max=audio_BN.shape[1] - 1))
        probs, windows = self.vad.run(audio, heard, rows[Field.SLOT])
        self._stats.turn_detection.calls += 1
        self._stats.turn_detection.busy_s += time.perf_counter() - started
        return probs.numpy(), windows.numpy().astype(np.int32)

    def wait(self, flight: Flight) -> StepFindings:
        assert isinstance(flight.token, StepFindings)
        return flight.token
