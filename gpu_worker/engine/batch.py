"""Packing a schedule into persistent host buffers, and those into the model's inputs.

The buffers are allocated once, for the largest step; a step uses their front.  With a CUDA device they
are pinned and copied without waiting; on CPU the model reads them in place.

Shape legend: B rows of the step, T encoder frames of a row, M pages of a ring, N samples of a row.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch

from gpu_worker.engine.block_manager import BlockManager
from gpu_worker.engine.clock import ChunkClock
from gpu_worker.engine.scheduler import Row, Schedule
from gpu_worker.engine.stream import Stream
from gpu_worker.model.model import UNKNOWN_END, StepInputs

_SLOT, _START, _FRAMES, _TOTAL, _LEAD, _SAMPLES = range(6)


@dataclass(frozen=True, slots=True)
class Batch:
    """One packed step.

    `inputs` are on the device.  The host keeps what the turn stage needs: `audio_BN` holds each row's new
    samples from column `leads[row]` on, `counts[row]` of them, `listens[row]` says whether its speech
    detector runs.
    """

    schedule: Schedule
    streams: tuple[Stream, ...]
    inputs: StepInputs
    audio_BN: torch.Tensor
    leads: tuple[int, ...]
    counts: tuple[int, ...]
    leads_B: torch.Tensor
    counts_B: torch.Tensor


class Batcher:
    """Host buffers for steps of at most `max_rows` rows of `max_chunks` chunks.

    Args:
        spare_samples: columns past the model's own, for a stream's last samples that belong to no frame.
    """

    def __init__(
        self,
        clock: ChunkClock,
        blocks: BlockManager,
        *,
        max_rows: int,
        max_chunks: int,
        device: torch.device,
    ) -> None:
        self._clock = clock
        self._blocks = blocks
        self._device = device
        # A stream's end may leave samples that complete no further frame: less than two mel hops.
        self.spare_samples = 2 * clock.hop_samples
        pinned = device.type == "cuda"
        columns = max_chunks * clock.chunk_samples + self.spare_samples
        self._audio = torch.zeros(max_rows * columns, pin_memory=pinned)
        self._rows = torch.zeros(6, max_rows, dtype=torch.int64, pin_memory=pinned)
        self._tables = torch.zeros(max_rows, blocks.ring_pages, dtype=torch.int32, pin_memory=pinned)
        self._audio_host = self._audio.numpy()
        self._rows_host = self._rows.numpy()
        self._tables_host = self._tables.numpy()

    def pack(self, schedule: Schedule, streams: Sequence[Stream]) -> Batch:
        """Move the rows' samples out of their queues into the buffers.

        Args:
            schedule: the step; its rows' streams have their pages.
            streams: the rows' streams in order.
        """
        clock, num_rows = self._clock, len(streams)
        num_frames = schedule.chunks * clock.chunk_frames
        width = schedule.chunks * clock.chunk_samples
        columns = width + self.spare_samples
        audio = self._audio_host[: num_rows * columns].reshape(num_rows, columns)
        rows = self._rows_host
        edges = False
        for index, (row, stream) in enumerate(zip(schedule.rows, streams, strict=True)):
            frames = row.chunks * clock.chunk_frames + row.remainder_frames
            lead, count = self._take(row, stream, frames, audio[index])
            edges = edges or row.ends or stream.frames_done == 0
            rows[:, index] = (
                stream.slot,
                stream.frames_done,
                frames,
                stream.total_samples if row.ends else UNKNOWN_END,
                lead,
                count,
            )
        slots = rows[_SLOT, :num_rows]
        np.take(self._blocks.table, slots, axis=0, out=self._tables_host[:num_rows])
        full = bool((rows[_FRAMES, :num_rows] == num_frames).all())
        device_rows = self._rows[:, :num_rows].to(self._device, non_blocking=True)
        audio_BN = self._audio[: num_rows * columns].view(num_rows, columns)
        audio_BN = audio_BN.to(self._device, non_blocking=True)
        inputs = StepInputs(
            samples_BN=audio_BN[:, :width],
            slots_B=device_rows[_SLOT],
            start_B=device_rows[_START],
            num_frames_B=device_rows[_FRAMES],
            total_samples_B=device_rows[_TOTAL],
            block_table_BM=self._tables[:num_rows].to(self._device, non_blocking=True),
            edges=edges,
            full=full,
        )
        return Batch(
            schedule,
            tuple(streams),
            inputs,
            audio_BN,
            tuple(rows[_LEAD, :num_rows].tolist()),
            tuple(rows[_SAMPLES, :num_rows].tolist()),
            device_rows[_LEAD],
            device_rows[_SAMPLES],
        )

    def _take(
        self, row: Row, stream: Stream, frames: int, target: np.ndarray[tuple[int], np.dtype[np.float32]]
    ) -> tuple[int, int]:
        """Fill one row; returns where its samples begin and how many they are."""
        clock = self._clock
        # Before its first sample a stream is silence: the window of frame 0 begins there.
        first = clock.frame_samples * (stream.frames_done - 1) + clock.lookahead_samples
        lead = max(0, -first) if stream.frames_done == 0 else 0
        if row.ends:
            wanted = len(stream.queue)
        else:
            wanted = clock.samples_of_frames(stream.frames_done + frames) - stream.samples_taken
        target[:lead] = 0.0
        taken = stream.queue.take_into(target[lead : lead + wanted])
        if taken != wanted:
            raise AssertionError(f"stream {stream.stream} has {taken} of {wanted} samples")
        target[lead + wanted :] = 0.0
        stream.samples_taken += taken
        return lead, taken
