"""Steps on CUDA: one set of graphs for each batch size, captured at start-up, replayed while serving.

The graphs of all sizes are captured largest first into one memory pool, so that smaller graphs use the blocks
of larger ones. A step is one copy of integers to the device (which reads the samples from pinned memory
itself), three graphs and a fourth where speech is detected, and one copy of results to the host. Buffers on
the host are double, because a step may be launched while the one before it runs.

Shape suffixes as in `steps`; G rows of a graph, at least the step's B. The rest are padding rows, which have
the spare slot and no frames, and so touch no stream's state.
"""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from gpu_worker.engine.config import BatchSizes
from gpu_worker.engine.interface import EngineStats
from gpu_worker.engine.steps import (
    SPARE_HOPS,
    AllocateRings,
    Export,
    Field,
    Flight,
    KeptFrames,
    StepFindings,
    StepShape,
    max_windows,
)
from gpu_worker.kernels.gather_samples import gather_samples
from gpu_worker.kernels.reference.log_mel_reference import FRAME_SAMPLES, HOP_SAMPLES, LEAD_SAMPLES
from gpu_worker.model.cuda_model import CudaModel, CudaStep
from gpu_worker.model.state import KVPages
from gpu_worker.steps.cuda_trees import CudaTrees
from gpu_worker.steps.device_rings import DeviceRings
from gpu_worker.steps.slot_store import SlotStore
from gpu_worker.turn.vad import SileroVad

# One step may be prepared while another one runs.
_BUFFERS = 2
# Chunks of a stream in the ring: two in running steps, one waiting, one arriving.
_RING_CHUNKS = 4


def batch_ladder(max_rows: int) -> tuple[int, ...]:
    """Return the sizes of the graphs: powers of two and the midpoints, so that at most a third is padding."""
    sizes = {max_rows}
    size = 1
    while size < max_rows:
        sizes.add(size)
        if size >= 8:
            sizes.add(min(max_rows, size + size // 2))
        size *= 2
    return tuple(sorted(sizes))


@dataclass(frozen=True, slots=True)
class _Captured:
    """The graphs of one size; `out_GE` is the output of the last graph."""

    stages: tuple[torch.cuda.CUDAGraph, ...]
    out_GE: Tensor


@dataclass(frozen=True, slots=True)
class _Token:
    """The buffer of a flight's results, and the events around its stages."""

    buffer: int
    size: int
    events: tuple[torch.cuda.Event, ...]
    listens: bool


def _event() -> torch.cuda.Event:
    """Return an event whose waiter sleeps: a waiter that spins would occupy a core."""
    return torch.cuda.Event(enable_timing=True, blocking=True)  # type: ignore[no-untyped-call]


class GraphSteps:
    """Steps by CUDA graphs: the constructor captures all sizes, and steps only replay them.

    Args:
        model: the network.
        shape: shape of the steps; a row is one chunk.
        batch_sizes: most rows of a call of each stage.
        vad: the speech detector; None where no stream has turn detection.
        phrase_words: memory for boosting trees, in int32.
        rings: allocates the rings, which the device reads directly; None for memory of this process.
    """

    def __init__(
        self,
        model: CudaModel,
        shape: StepShape,
        batch_sizes: BatchSizes,
        vad: SileroVad | None,
        phrase_words: int = 0,
        rings: AllocateRings | None = None,
    ) -> None:
        self.shape = shape
        self.stats = EngineStats()
        self.model = model
        num_slots, pages = shape.num_slots, shape.pages
        self._store = SlotStore(
            model.make_state(num_slots), KVPages.for_model(model, pages.num_pages, pages.page_frames), vad
        )
        self._prompts = [self._store.state.default_prompt] * num_slots
        ring_samples = _RING_CHUNKS * shape.clock.chunk_samples
        self.device_rings = DeviceRings(num_slots, ring_samples, model.device, rings)
        self.rings = self.device_rings.memory
        self.trees = CudaTrees(phrase_words, self._store.state.node_SM)
        self._sizes = batch_sizes
        self._ring_pages = ring_pages = pages.ring_pages
        self._columns = model.chunk_frames * FRAME_SAMPLES + SPARE_HOPS * HOP_SAMPLES
        self._most = model.chunk_frames * model.max_symbols
        self._windows = max_windows(self._columns) if vad is not None else 0
        self._width = 1 + 3 * self._most + self._windows
        fields = shape.max_rows * (len(Field) + ring_pages)
        self._rows = torch.zeros(fields, dtype=torch.int32, device=model.device)
        self._rows_host = [torch.zeros(fields, dtype=torch.int32, pin_memory=True) for _ in range(_BUFFERS)]
        self._out_host = [
            torch.zeros(shape.max_rows * self._width, dtype=torch.int32, pin_memory=True)
            for _ in range(_BUFFERS)
        ]
        self._next = 0
        self._stream = torch.cuda.Stream(model.device)  # type: ignore[no-untyped-call]
        self._captured: dict[int, _Captured] = {}
        started = time.monotonic()
        with torch.inference_mode(), torch.cuda.device(model.device):
            self._capture(batch_ladder(shape.max_rows))
        self.capture_s = time.monotonic() - started

    @property
    def captured_sizes(self) -> tuple[int, ...]:
        """Batch sizes that have graphs, ascending."""
        return tuple(sorted(self._captured))

    # ------------------------------------------------------------------ capture

    def _capture(self, sizes: Sequence[int]) -> None:
        pool = torch.cuda.graph_pool_handle()
        for size in sorted(sizes, reverse=True):
            self._pad(0, size, 0)
            self._rows.copy_(self._rows_host[0])
            torch.cuda.synchronize()
            # Compiles kernels, and lets the matrix library choose its kernels, outside of the graph.
            with torch.cuda.stream(self._stream):
                audio, x = self._pre_encode(size)
                out = self._decode(size, audio, self._encode(size, x))
                if self._store.vad is not None:
                    self._listen(size, audio, out, self._store.vad)
            torch.cuda.synchronize()
            graphs = [torch.cuda.CUDAGraph() for _ in range(3)]
            with torch.cuda.graph(graphs[0], pool=pool, stream=self._stream):
                audio, x = self._pre_encode(size)
            with torch.cuda.graph(graphs[1], pool=pool, stream=self._stream):
                encoded = self._encode(size, x)
            with torch.cuda.graph(graphs[2], pool=pool, stream=self._stream):
                found = out = self._decode(size, audio, encoded)
            if self._store.vad is not None:
                graphs.append(torch.cuda.CUDAGraph())
                with torch.cuda.graph(graphs[3], pool=pool, stream=self._stream):
                    out = self._listen(size, audio, found, self._store.vad)
            self._captured[size] = _Captured(tuple(graphs), out)
        torch.cuda.synchronize()

    def _field(self, size: int, field: Field) -> Tensor:
        return self._rows[field * size : (field + 1) * size]

    def _parts(self, size: int, most: int) -> list[slice]:
        return [slice(first, min(size, first + most)) for first in range(0, size, most)]

    def _step(self, size: int, audio_GN: Tensor, part: slice) -> CudaStep:
        first = len(Field) * size
        table = self._rows[first : first + size * self._ring_pages].view(size, self._ring_pages)
        return CudaStep(
            samples_BN=audio_GN[part, : self.model.chunk_frames * FRAME_SAMPLES],
            slots_B=self._field(size, Field.SLOT)[part],
            start_B=self._field(size, Field.START)[part],
            num_frames_B=self._field(size, Field.FRAMES)[part],
            total_samples_B=self._field(size, Field.TOTAL)[part],
            block_table_BM=table[part],
        )

    def _pre_encode(self, size: int) -> tuple[Tensor, Tensor]:
        first_B = self._field(size, Field.START) * FRAME_SAMPLES - LEAD_SAMPLES
        slots, total = self._field(size, Field.SLOT), self._field(size, Field.TOTAL)
        is_float = self._field(size, Field.FLOAT)
        audio_GN = gather_samples(self.device_rings.on_device, slots, is_float, first_B, total, self._columns)
        parts = [
            self.model.pre_encode(self._step(size, audio_GN, part), self._store.state)
            for part in self._parts(size, self._sizes.pre_encode)
        ]
        return audio_GN, torch.cat(parts) if len(parts) > 1 else parts[0]

    def _encode(self, size: int, x_GTD: Tensor) -> Tensor:
        step = self._step(size, x_GTD.new_empty(size, 0), slice(0, size))
        return self.model.encode(x_GTD, step, self._store.state, self._store.pages)

    def _decode(self, size: int, audio_GN: Tensor, encoded_GTD: Tensor) -> Tensor:
        parts = []
        for part in self._parts(size, self._sizes.decode):
            step = self._step(size, audio_GN, part)
            parts.append(self.model.decode(encoded_GTD[part], step, self._store.state, self.trees.of_slots))
        return torch.cat(parts) if len(parts) > 1 else parts[0]

    def _listen(self, size: int, audio_GN: Tensor, found_GE: Tensor, vad: SileroVad) -> Tensor:
        """Return the findings with those of the speech detector appended."""
        lead_B = (LEAD_SAMPLES - self._field(size, Field.START) * FRAME_SAMPLES).clamp(min=0)
        column = torch.arange(self._columns, device=audio_GN.device)
        index = (column + lead_B.unsqueeze(1)).clamp_(max=self._columns - 1)
        slots = self._field(size, Field.SLOT).to(torch.int64)
        probs, _ = vad.run(audio_GN.gather(1, index), self._field(size, Field.HEARD), slots)
        return torch.cat([found_GE, probs.view(torch.int32)], dim=1)

    # ------------------------------------------------------------------ serving

    def _pad(self, buffer: int, size: int, num_rows: int) -> NDArray[np.int32]:
        """Fill rows `num_rows` .. `size` - 1 of a host buffer as padding rows; return its fields [F, G]."""
        rows: NDArray[np.int32] = self._rows_host[buffer].numpy()
        fields = rows[: len(Field) * size].reshape(len(Field), size)
        fields[:, num_rows:] = 0
        fields[Field.SLOT, num_rows:] = self._store.state.spare_slot
        tables = rows[len(Field) * size : (len(Field) + self._ring_pages) * size]
        tables.reshape(size, self._ring_pages)[num_rows:] = self._store.pages.spare_page
        return fields

    @torch.inference_mode()
    def reset(self, slots: Sequence[int], prompts: Sequence[int]) -> None:
        # At a stream's begin the kernels ignore the slot's old state; the speech detector would not.
        store = self._store
        for slot, prompt in zip(slots, prompts, strict=True):
            if store.vad is not None:
                store.vad.reset(slot)
            if self._prompts[slot] != prompt:
                store.state.prompt_S[slot] = self._prompts[slot] = prompt

    def export(self, slot: int, kept: KeptFrames | None) -> Export:
        return self._store.export(slot, kept)

    def load(self, slot: int, kept: KeptFrames | None, state: Mapping[str, memoryview]) -> None:
        self._store.load(slot, kept, state)
        # Any earlier prompt is replaced: the next stream's is written in any case.
        self._prompts[slot] = -1

    @torch.inference_mode()
    def launch(self, rows_FB: NDArray[np.int32], table_BM: NDArray[np.int32]) -> Flight:
        num_rows = rows_FB.shape[1]
        size = min(size for size in self._captured if size >= num_rows)
        buffer, self._next = self._next, (self._next + 1) % _BUFFERS
        fields = self._pad(buffer, size, num_rows)
        fields[:, :num_rows] = rows_FB
        first, count = len(Field) * size, (len(Field) + self._ring_pages) * size
        tables = self._rows_host[buffer].numpy()[first:count].reshape(size, self._ring_pages)
        tables[:num_rows] = table_BM
        self.device_rings.bring(rows_FB[Field.SLOT])
        captured = self._captured[size]
        # A thread's current device is the first one unless it is set; events are made on it.
        with torch.cuda.device(self.model.device):
            events = tuple(_event() for _ in range(len(captured.stages) + 2))
            self._rows[:count].copy_(self._rows_host[buffer][:count], non_blocking=True)
            events[0].record()
            for graph, event in zip(captured.stages, events[1:-1], strict=True):
                graph.replay()
                event.record()
            self._out_host[buffer][: size * self._width].copy_(captured.out_GE.view(-1), non_blocking=True)
            events[-1].record()
        listens = self._store.vad is not None and bool(rows_FB[Field.HEARD].any())
        return Flight(num_rows, _Token(buffer, size, events, listens))

    def is_over(self, flight: Flight) -> bool:
        token = flight.token
        assert isinstance(token, _Token)
        over: bool = token.events[-1].query()  # type: ignore[no-untyped-call]
        return over

    def wait(self, flight: Flight) -> StepFindings:
        token = flight.token
        assert isinstance(token, _Token)
        token.events[-1].synchronize()
        stats, times = self.stats, token.events[:-1]
        stages = [(stats.pre_encode, 1), (stats.encode, 1), (stats.decode, 1)]
        if self._store.vad is not None:
            # The detector runs in every step, but counts as called only where a row has turn detection.
            stages.append((stats.turn_detection, int(token.listens)))
        for (stage, calls), begin, end in zip(stages, times[:-1], times[1:], strict=True):
            stage.calls += calls
            stage.busy_s += begin.elapsed_time(end) / 1000
        out: NDArray[np.int32] = self._out_host[token.buffer].numpy()
        out = out[: token.size * self._width].reshape(token.size, self._width)[: flight.num_rows]
        most = self._most
        return StepFindings(
            num_symbols_B=out[:, 0],
            symbols_BK=out[:, 1 : 1 + most],
            frames_BK=out[:, 1 + most : 1 + 2 * most],
            confidences_BK=out[:, 1 + 2 * most : 1 + 3 * most].view(np.float32),
            speech_BW=out[:, 1 + 3 * most :].view(np.float32),
        )
