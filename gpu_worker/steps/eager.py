"""Steps of the plain model, which run when they are launched: for CPU.

Shape suffixes as in `engine.steps`; T encoder frames of a row, N samples of a row.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager

import numpy as np
import torch
from numpy.typing import NDArray

from gpu_worker.engine.config import BatchSizes
from gpu_worker.engine.interface import EngineStats, StageStats
from gpu_worker.engine.steps import (
    SPARE_HOPS,
    UNKNOWN_END,
    AllocateRings,
    Export,
    Field,
    Flight,
    KeptFrames,
    RingMemory,
    StepFindings,
    StepShape,
)
from gpu_worker.model.layers.decoding import Emissions
from gpu_worker.model.model import StepInputs, StreamingModel
from gpu_worker.model.state import KVPages
from gpu_worker.steps.eager_trees import EagerTrees
from gpu_worker.steps.hearing import first_samples, gather_rows, hear
from gpu_worker.steps.slot_store import SlotStore
from gpu_worker.turn.vad import SileroVad

# Chunks of audio in the ring besides those of a step.
_SPARE_CHUNKS = 3


class EagerSteps:
    """Steps of the plain model.

    Args:
        model: the network.
        shape: shape of the steps; rows may have several chunks.
        batch_sizes: most rows of a call of each stage.
        vad: the speech detector; None where no stream has turn detection.
        phrase_words: memory for boosting trees, in int32.
        rings: allocates the rings; None for memory of this process.
    """

    def __init__(
        self,
        model: StreamingModel,
        shape: StepShape,
        batch_sizes: BatchSizes,
        vad: SileroVad | None,
        phrase_words: int = 0,
        rings: AllocateRings | None = None,
    ) -> None:
        self.shape = shape
        self.stats = EngineStats()
        ring_samples = (shape.max_chunks + _SPARE_CHUNKS) * shape.clock.chunk_samples
        self.rings = (rings or RingMemory.allocate)(shape.num_slots, ring_samples)
        pages = KVPages.for_model(model, shape.pages.num_pages, shape.pages.page_frames)
        self._store = SlotStore(model.make_state(shape.num_slots), pages, vad)
        self.trees = EagerTrees(phrase_words, self._store.state.node_SM)
        self._model = model
        self._sizes = batch_sizes

    @torch.inference_mode()
    def reset(self, slots: Sequence[int], prompts: Sequence[int]) -> None:
        self._store.state.reset(torch.tensor(slots))
        self._store.state.prompt_S[torch.tensor(slots)] = torch.tensor(prompts)
        if self._store.vad is not None:
            for slot in slots:
                self._store.vad.reset(slot)

    def export(self, slot: int, kept: KeptFrames | None) -> Export:
        return self._store.export(slot, kept)

    def load(self, slot: int, kept: KeptFrames | None, state: Mapping[str, memoryview]) -> None:
        self._store.load(slot, kept, state)

    @torch.inference_mode()
    def launch(self, rows_FB: NDArray[np.int32], table_BM: NDArray[np.int32]) -> Flight:
        clock, stats, num_rows = self.shape.clock, self.stats, rows_FB.shape[1]
        chunks = max(1, -(-int(rows_FB[Field.FRAMES].max()) // clock.chunk_frames))
        num_frames = chunks * clock.chunk_frames
        first_B = first_samples(rows_FB, clock)
        width = num_frames * clock.frame_samples
        audio = gather_rows(self.rings, rows_FB, first_B, width + SPARE_HOPS * clock.hop_samples)
        audio_BN = torch.from_numpy(audio)
        speech = hear(self._store.vad, rows_FB, first_B, audio_BN, stats)
        inputs = self._inputs(rows_FB, table_BM, audio_BN[:, :width], num_frames)
        x_BTD = self._by_rows(
            inputs,
            self._sizes.pre_encode,
            stats.pre_encode,
            lambda rows, _: self._model.pre_encode(rows, self._store.state),
        )
        encoded_BTD = self._by_rows(
            inputs,
            self._sizes.encode,
            stats.encode,
            lambda rows, part: self._model.encode(x_BTD[part], rows, self._store.state, self._store.pages),
        )
        findings = _Findings(num_rows, num_frames * self._model.config.max_symbols)
        for part in _parts(num_rows, self._sizes.decode):
            with _timed(stats.decode):
                rows = inputs.rows(part.start, part.stop)
                boosted = self.trees.rows(rows.slots_B)
                emissions = self._model.decode(encoded_BTD[part], rows, self._store.state, boosted)
                self.trees.moved(rows.slots_B, boosted)
                findings.add(part.start, emissions)
        return Flight(num_rows, findings.with_speech(speech))

    def _inputs(
        self,
        rows_FB: NDArray[np.int32],
        table_BM: NDArray[np.int32],
        samples_BN: torch.Tensor,
        num_frames: int,
    ) -> StepInputs:
        rows = torch.from_numpy(rows_FB.astype(np.int64))
        return StepInputs(
            samples_BN=samples_BN,
            slots_B=rows[Field.SLOT],
            start_B=rows[Field.START],
            num_frames_B=rows[Field.FRAMES],
            total_samples_B=rows[Field.TOTAL],
            block_table_BM=torch.from_numpy(table_BM),
            edges=bool((rows_FB[Field.START] == 0).any() or (rows_FB[Field.TOTAL] != UNKNOWN_END).any()),
            full=bool((rows_FB[Field.FRAMES] == num_frames).all()),
        )

    @staticmethod
    def _by_rows(
        inputs: StepInputs, size: int, stage: StageStats, run: Callable[[StepInputs, slice], torch.Tensor]
    ) -> torch.Tensor:
        """Run a stage over at most `size` rows at a time."""
        found = []
        for part in _parts(inputs.slots_B.shape[0], size):
            with _timed(stage):
                found.append(run(inputs.rows(part.start, part.stop), part))
        return found[0] if len(found) == 1 else torch.cat(found)

    def is_over(self, flight: Flight) -> bool:
        return True

    def wait(self, flight: Flight) -> StepFindings:
        assert isinstance(flight.token, StepFindings)
        return flight.token


class _Findings:
    """Collects the symbols of a step's rows, round by round."""

    def __init__(self, num_rows: int, most: int) -> None:
        self._count = np.zeros(num_rows, dtype=np.int32)
        self._symbols = np.zeros((num_rows, most), dtype=np.int32)
        self._frames = np.zeros((num_rows, most), dtype=np.int32)
        self._confidences = np.zeros((num_rows, most), dtype=np.float32)

    def add(self, first_row: int, emissions: Emissions | None) -> None:
        if emissions is None:
            return
        rounds = (emissions.token_EB, emissions.frame_EB, emissions.confidence_EB)
        for token_B, frame_B, confidence_B in zip(*(part.numpy() for part in rounds), strict=True):
            emits = np.flatnonzero(token_B >= 0)
            row = first_row + emits
            at = self._count[row]
            self._symbols[row, at] = token_B[emits]
            self._frames[row, at] = frame_B[emits]
            self._confidences[row, at] = confidence_B[emits]
            self._count[row] += 1

    def with_speech(self, speech_BW: NDArray[np.float32]) -> StepFindings:
        return StepFindings(self._count, self._symbols, self._frames, self._confidences, speech_BW)


def _parts(num_rows: int, most: int) -> list[slice]:
    return [slice(first, min(num_rows, first + most)) for first in range(0, num_rows, most)]


@contextmanager
def _timed(stage: StageStats) -> Iterator[None]:
    started = time.perf_counter()
    yield
    stage.calls += 1
    stage.busy_s += time.perf_counter() - started
