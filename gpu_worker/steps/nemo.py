"""Steps of NeMo's own modules (`--backend nemo`): the reference implementation.

For comparison, and for checkpoints that the package's own model does not support. It favours correctness over
speed: a step has one chunk of a stream, chunks of the same kind form a batch, and rows are decoded one by
one.
"""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Final

import numpy as np
import safetensors.torch
import torch
from numpy.typing import NDArray
from safetensors import SafetensorError
from torch import Tensor

from common.options import StreamOptions
from gpu_worker.engine.interface import EngineStats, StageStats
from gpu_worker.engine.phrases.tree_memory import NO_TREES
from gpu_worker.engine.slots.clock import ChunkClock
from gpu_worker.engine.steps import (
    NO_PAGES,
    SPARE_HOPS,
    UNKNOWN_END,
    Export,
    Field,
    Flight,
    KeptFrames,
    RingMemory,
    StepFindings,
    StepShape,
)
from gpu_worker.model.state import HostCopy, from_buffer
from gpu_worker.steps.hearing import first_samples, gather_rows, hear
from gpu_worker.steps.nemo_model import NemoModel, NemoState
from gpu_worker.turn.vad import EXPORT_FLOATS, SileroVad

_RING_CHUNKS: Final = 4
_TAIL: Final = "tail"
_MODEL, _LANGUAGE, _VAD = "nemo", "language", "vad"


@dataclass(slots=True)
class _Slot:
    """The state of a stream: NeMo's state, the last samples that a mel frame needs, the language."""

    state: NemoState = field(default_factory=NemoState)
    tail: NDArray[np.float32] = field(default_factory=lambda: np.zeros(0, np.float32))
    language: str | None = None


@dataclass(frozen=True, slots=True)
class _Work:
    """A row: mel frames `first_mel` .. `end_mel` - 1, `frames` encoder frames.

    `samples` begin at sample `first_sample`, with the kept samples.
    """

    row: int
    slot: _Slot
    samples: NDArray[np.float32]
    first_sample: int
    first_mel: int
    end_mel: int
    frames: int

    @property
    def kind(self) -> tuple[int, int, str | None]:
        """Kind of the row: rows of one kind go through the encoder together."""
        return self.end_mel - self.first_mel, self.slot.state.num_cached_mels, self.slot.language


class NemoSteps:
    """Steps of NeMo's own modules.

    Args:
        model: NeMo's model with its attention context.
        num_slots: number of streams that can be open at once.
        batch_size: most rows of a step.
        turn_detection: whether the speech detector runs at all.
    """

    def __init__(
        self, model: NemoModel, *, num_slots: int, batch_size: int = 32, turn_detection: bool = True
    ) -> None:
        clock = ChunkClock(model.hop_samples, model.window_samples // 2, model.factor, model.chunk_frames)
        self.shape = StepShape(
            clock=clock,
            num_slots=num_slots,
            max_rows=min(batch_size, num_slots),
            max_chunks=1,
            frame_symbols=model.max_symbols,
            pages=NO_PAGES,
            overlaps=False,
            hears=turn_detection,
            fingerprint=model.fingerprint,
        )
        self.stats = EngineStats()
        self.trees = NO_TREES
        self.rings = RingMemory.allocate(num_slots, _RING_CHUNKS * clock.chunk_samples)
        self._model = model
        self._vad = SileroVad(num_slots + 1, model.device) if turn_detection else None
        self._slots = [_Slot() for _ in range(num_slots)]
        self._languages: list[str | None] = []

    def prompt_of(self, options: StreamOptions) -> int:
        """Return the number of a stream's language. Raises UnsupportedOption."""
        language = self._model.language(options.language)
        if language not in self._languages:
            self._languages.append(language)
        return self._languages.index(language)

    def reset(self, slots: Sequence[int], prompts: Sequence[int]) -> None:
        for slot, prompt in zip(slots, prompts, strict=True):
            self._slots[slot] = _Slot(language=self._languages[prompt])
            if self._vad is not None:
                self._vad.reset(slot)

    def export(self, slot: int, kept: KeptFrames | None) -> Export:
        holds = self._slots[slot]
        tensors = holds.state.export() | {_TAIL: torch.from_numpy(holds.tail)}
        buffers = {
            _MODEL: memoryview(safetensors.torch.save(tensors)),
            _LANGUAGE: memoryview((holds.language or "").encode()),
        }
        if self._vad is not None:
            buffers |= HostCopy({_VAD: self._vad.export_slot(slot)}).buffers()
        return lambda: buffers

    def load(self, slot: int, kept: KeptFrames | None, state: Mapping[str, memoryview]) -> None:
        try:
            tensors = safetensors.torch.load(bytes(state[_MODEL]))
        except SafetensorError as error:
            raise ValueError(f"the model's state cannot be read: {error}") from error
        tail = tensors.pop(_TAIL).numpy().copy()
        language = bytes(state[_LANGUAGE]).decode() or None
        self._slots[slot] = _Slot(NemoState.load(tensors, self._model.device), tail, language)
        if self._vad is not None:
            self._vad.import_slot(slot, from_buffer(_VAD, state.get(_VAD), torch.empty(EXPORT_FLOATS)))

    @torch.inference_mode()
    def launch(self, rows_FB: NDArray[np.int32], table_BM: NDArray[np.int32]) -> Flight:
        clock, num_rows = self.shape.clock, rows_FB.shape[1]
        first_B = first_samples(rows_FB, clock)
        columns = clock.chunk_samples + SPARE_HOPS * clock.hop_samples
        audio = gather_rows(self.rings, rows_FB, first_B, columns)
        audio_BN = torch.from_numpy(audio).to(self._model.device)
        speech = hear(self._vad, rows_FB, first_B, audio_BN, self.stats)
        groups: dict[tuple[int, int, str | None], list[_Work]] = {}
        tokens: list[list[tuple[int, int, float]]] = [[] for _ in range(num_rows)]
        for row in range(num_rows):
            work = self._work(row, rows_FB[:, row].tolist(), audio[row], int(first_B[row]))
            groups.setdefault(work.kind, []).append(work)
        for group in groups.values():
            self._run(group, tokens)
        most = max(1, *map(len, tokens))
        symbols = np.zeros((num_rows, most, 3))
        for row, found in enumerate(tokens):
            symbols[row, : len(found)] = np.array(found).reshape(-1, 3)
        findings = StepFindings(
            num_symbols_B=np.array([len(found) for found in tokens], dtype=np.int32),
            symbols_BK=symbols[:, :, 0].astype(np.int32),
            frames_BK=symbols[:, :, 1].astype(np.int32),
            confidences_BK=symbols[:, :, 2].astype(np.float32),
            speech_BW=speech,
        )
        return Flight(num_rows, findings)

    def is_over(self, flight: Flight) -> bool:
        return True

    def wait(self, flight: Flight) -> StepFindings:
        assert isinstance(flight.token, StepFindings)
        return flight.token

    def _work(self, row: int, fields: list[int], audio_N: NDArray[np.float32], first: int) -> _Work:
        clock, slot = self.shape.clock, self._slots[fields[Field.SLOT]]
        start, frames, total = fields[Field.START], fields[Field.FRAMES], fields[Field.TOTAL]
        begin, end = clock.samples_of_frames(start), clock.samples_of_frames(start + frames)
        first_mel = clock.factor * (start - 1) + 1 if start else 0
        if total == UNKNOWN_END or (frames == clock.chunk_frames and end <= total):
            end_mel = clock.factor * (start + frames - 1) + 1
        else:
            end, end_mel = total, max(total // clock.hop_samples, first_mel)
        samples = np.concatenate([slot.tail, audio_N[begin - first : end - first]])
        return _Work(row, slot, samples, begin - len(slot.tail), first_mel, end_mel, frames)

    def _run(self, group: list[_Work], tokens: list[list[tuple[int, int, float]]]) -> None:
        """Decode rows of one kind."""
        model, stats = self._model, self.stats
        # A remainder may have mel frames without a whole encoder frame, or no mel frames.
        encoded: Tensor | None = None
        started = time.perf_counter()
        if group[0].frames > 0 and group[0].end_mel > group[0].first_mel:
            mels = [
                model.mels(torch.from_numpy(work.samples), work.first_sample, work.first_mel, work.end_mel)
                for work in group
            ]
            started = _count(stats.pre_encode, started)
            encoded = model.encode([work.slot.state for work in group], mels, group[0].slot.language)
            started = _count(stats.encode, started)
        for index, work in enumerate(group):
            if encoded is not None:
                tokens[work.row] = model.decode(work.slot.state, encoded[index, : work.frames])
            keep = max(0, model.signal_start(work.end_mel) - work.first_sample)
            work.slot.tail = work.samples[keep:].copy()
        _count(stats.decode, started)


def _count(stage: StageStats, started: float) -> float:
    now = time.perf_counter()
    stage.calls += 1
    stage.busy_s += now - started
    return now
