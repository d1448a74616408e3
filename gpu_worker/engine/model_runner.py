"""Runs a packed step through the stages and brings what they found back to the host.

Each stage runs over the step's rows in groups of its own batch size and is timed by itself.  Between the
first stage and the single copy back nothing waits for the device, except greedy decoding, which asks
after each round whether there is another.

Shape legend: B rows, T encoder frames, D model width, W windows of the speech detector.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from gpu_worker.engine.batch import Batch
from gpu_worker.engine.interface import EngineStats, StageStats
from gpu_worker.engine.transcript import Token
from gpu_worker.model.decoding import Emissions
from gpu_worker.model.model import StepInputs, StreamingModel
from gpu_worker.model.state import KVPages, SlotState
from gpu_worker.turn.vad import SileroVad


@dataclass(frozen=True, slots=True)
class BatchSizes:
    """Most rows of one call of each stage."""

    pre_encode: int
    encode: int
    decode: int


@dataclass(frozen=True, slots=True)
class RowResult:
    """What one row of a step gave: its tokens in order, and the speech probability of each window."""

    tokens: tuple[Token, ...]
    speech: tuple[float, ...]


class StepRunner(Protocol):
    """What the engine needs of whoever runs its steps."""

    def reset(self, slot: int, prompt: int) -> None:
        """Give a slot to a new stream with a language prompt."""
        ...

    def export(self, slot: int, pages: Tensor, offsets: Tensor) -> dict[str, Tensor]:
        """A slot's whole state on the host, with the keys and values at (page, offset)."""
        ...

    def load(self, slot: int, pages: Tensor, offsets: Tensor, tensors: Mapping[str, Tensor]) -> None:
        """Put an exported state into a slot.  Raises KeyError or ValueError when it does not fit."""
        ...

    def run(self, batch: Batch, listens: tuple[bool, ...]) -> list[RowResult]:
        """Run one step; `listens` says for each row whether its speech detector runs."""
        ...


class ModelRunner:
    """The model, its state and the stages' order.

    Args:
        model: the network.
        num_slots: streams that can be open.
        num_pages, page_frames: of the key/value cache.
        batch_sizes: rows of a call of each stage.
        vad: the speech detector; None when no stream's turns are detected.
        stats: where calls, units and seconds are counted.
    """

    def __init__(
        self,
        model: StreamingModel,
        *,
        num_slots: int,
        num_pages: int,
        page_frames: int,
        batch_sizes: BatchSizes,
        vad: SileroVad | None,
        stats: EngineStats,
    ) -> None:
        self.model = model
        self.vad = vad
        self.state: SlotState = model.make_state(num_slots)
        self.pages = KVPages.for_model(model, num_pages, page_frames)
        self._sizes = batch_sizes
        self._stats = stats
        self._synchronizes = model.device.type == "cuda"

    def reset(self, slot: int, prompt: int) -> None:
        """See `StepRunner.reset`."""
        self.state.reset(torch.tensor([slot], device=self.model.device))
        self.state.prompt_S[slot] = prompt
        if self.vad is not None:
            self.vad.reset(slot)

    def export(self, slot: int, pages: Tensor, offsets: Tensor) -> dict[str, Tensor]:
        """See `StepRunner.export`."""
        device = self.model.device
        tensors = self.state.export(slot)
        tensors["keys"], tensors["values"] = self.pages.export(pages.to(device), offsets.to(device))
        if self.vad is not None:
            tensors["vad"] = self.vad.export_slot(slot)
        return tensors

    def load(self, slot: int, pages: Tensor, offsets: Tensor, tensors: Mapping[str, Tensor]) -> None:
        """See `StepRunner.load`."""
        device = self.model.device
        self.state.load(slot, tensors)
        self.pages.load(pages.to(device), offsets.to(device), tensors["keys"], tensors["values"])
        if self.vad is not None:
            self.vad.import_slot(slot, tensors["vad"])

    def run(self, batch: Batch, listens: tuple[bool, ...]) -> list[RowResult]:
        """See `StepRunner.run`."""
        inputs, num_rows = batch.inputs, len(batch.streams)
        speech = self._detect(batch, listens)
        tokens: list[tuple[Token, ...]] = []
        parts: list[Tensor] = []
        for rows in _groups(inputs, num_rows, self._sizes.pre_encode):
            with self._timed(self._stats.pre_encode):
                parts.append(self.model.pre_encode(rows, self.state))
        self._stats.pre_encode.units += sum(row.chunks + row.ends for row in batch.schedule.rows)
        x = parts[0] if len(parts) == 1 else torch.cat(parts)

        frames = sum(
            row.chunks * self.model.chunk_frames + row.remainder_frames for row in batch.schedule.rows
        )
        parts, first = [], 0
        for rows in _groups(inputs, num_rows, self._sizes.encode):
            end = first + rows.slots_B.shape[0]
            with self._timed(self._stats.encode):
                parts.append(self.model.encode(x[first:end], rows, self.state, self.pages))
            first = end
        self._stats.encode.units += frames
        encoded = parts[0] if len(parts) == 1 else torch.cat(parts)

        first = 0
        for rows in _groups(inputs, num_rows, self._sizes.decode):
            end = first + rows.slots_B.shape[0]
            with self._timed(self._stats.decode):
                emissions = self.model.decode(encoded[first:end], rows, self.state)
                starts = [stream.frames_done for stream in batch.streams[first:end]]
                tokens.extend(_tokens_of_rows(emissions, starts))
            first = end
        self._stats.decode.units += frames
        self._stats.tokens += sum(len(row) for row in tokens)
        return [RowResult(*pair) for pair in zip(tokens, speech, strict=True)]

    def _detect(self, batch: Batch, listens: tuple[bool, ...]) -> list[tuple[float, ...]]:
        """Speech probabilities of the windows that each row completes."""
        if self.vad is None or not any(listens):
            return [()] * len(listens)
        with self._timed(self._stats.turn_detection):
            audio, counts = batch.audio_BN, batch.counts_B
            if any(batch.leads):
                column = torch.arange(audio.shape[1], device=audio.device)
                index = (column + batch.leads_B.unsqueeze(1)).clamp_(max=audio.shape[1] - 1)
                audio = audio.gather(1, index)
            if not all(listens):
                counts = counts * torch.tensor(listens, device=counts.device)
            probs_BW, windows_B = self.vad.run(audio, counts, batch.inputs.slots_B)
            probs, windows = probs_BW.tolist(), windows_B.tolist()
        self._stats.turn_detection.units += sum(windows)
        return [tuple(row[:count]) for row, count in zip(probs, windows, strict=True)]

    @contextmanager
    def _timed(self, stage: StageStats) -> Iterator[None]:
        started = time.perf_counter()
        yield
        if self._synchronizes:
            torch.cuda.synchronize(self.model.device)
        stage.calls += 1
        stage.busy_s += time.perf_counter() - started


def _groups(inputs: StepInputs, num_rows: int, size: int) -> Iterator[StepInputs]:
    for first in range(0, num_rows, size):
        yield inputs.rows(first, min(num_rows, first + size))


def _tokens_of_rows(emissions: Emissions | None, starts: list[int]) -> list[tuple[Token, ...]]:
    """Tokens of each row in the order of emission, their frames made absolute."""
    if emissions is None:
        return [()] * len(starts)
    tokens: list[list[Token]] = [[] for _ in starts]
    rounds = zip(
        emissions.token_EB.tolist(),
        emissions.frame_EB.tolist(),
        emissions.confidence_EB.tolist(),
        strict=True,
    )
    for token_row, frame_row, confidence_row in rounds:
        for row, token in enumerate(token_row):
            if token >= 0:
                tokens[row].append(Token(token, starts[row] + frame_row[row], confidence_row[row]))
    return [tuple(row) for row in tokens]
