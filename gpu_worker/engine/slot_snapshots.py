"""Snapshots of the pipelined engine's streams: what a slot holds, on the device and on the host.

A snapshot is taken between two steps, with no step of the stream under way.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict

import numpy as np
import torch

from gpu_worker.engine.block_manager import BlockManager
from gpu_worker.engine.interface import SnapshotMismatch, StreamOutput
from gpu_worker.engine.pipelined_stream import PipelinedStream
from gpu_worker.engine.sample_rings import SampleRings
from gpu_worker.engine.slot_table import SlotTable
from gpu_worker.engine.snapshot import Snapshot
from gpu_worker.engine.steps import Steps
from gpu_worker.engine.stored_output import decode_output
from gpu_worker.turn.settings import TurnSettings
from gpu_worker.turn.stage import TurnStage


class SlotSnapshots:
    """Takes and restores them.

    Args:
        fingerprint: names the model and the layout of its state.
        left_frames: encoder frames whose keys and values later chunks can still see.
    """

    def __init__(
        self,
        steps: Steps,
        table: SlotTable,
        rings: SampleRings,
        blocks: BlockManager,
        turns: TurnStage,
        *,
        fingerprint: str,
        left_frames: int,
    ) -> None:
        self._steps, self._table, self._rings = steps, table, rings
        self._blocks, self._turns = blocks, turns
        self._fingerprint = fingerprint
        self._left_frames = left_frames

    def read(self, data: bytes) -> Snapshot:
        """Raises SnapshotMismatch for another model or layout."""
        return Snapshot.from_bytes(data, self._fingerprint)

    @torch.inference_mode()
    def restore(
        self, state: PipelinedStream, settings: TurnSettings, restored: Snapshot
    ) -> list[StreamOutput]:
        """Fill the stream's slot; returns outputs that were ready when the snapshot was taken.

        Raises SnapshotMismatch, OutOfPages.
        """
        slot, host, tensors = state.slot, restored.host, restored.tensors
        try:
            frames = int(host["frames_done"])
            samples = self._table.clock.samples_of_frames(frames)
            self._table.open(slot, state.order, frames, samples)
            self._rings.open(slot, samples)
            state.transcript.load(host["transcript"])
            self._blocks.grow(slot, frames)
            self._steps.state.load(slot, tensors)
            pages, offsets = self._kept_frames(slot, frames)
            self._steps.pages.load(pages, offsets, tensors["keys"], tensors["values"])
            if self._steps.vad is not None:
                self._steps.vad.import_slot(slot, tensors["vad"])
            if state.listens:
                self._turns.open(state.stream, settings, exported=tensors["turns"].numpy().tobytes())
            return [decode_output(state.stream, values) for values in host["unsent"]]
        except (KeyError, ValueError, TypeError) as error:
            raise SnapshotMismatch(f"The snapshot does not fit this engine: {error}.") from error

    @torch.inference_mode()
    def take(self, state: PipelinedStream, unsent: Sequence[StreamOutput]) -> bytes:
        """The stream's state; `unsent` are its outputs that nobody has got yet."""
        slot = state.slot
        frames = int(self._table.decoded[slot])
        tensors = self._steps.state.export(slot)
        tensors["keys"], tensors["values"] = self._steps.pages.export(*self._kept_frames(slot, frames))
        if self._steps.vad is not None:
            tensors["vad"] = self._steps.vad.export_slot(slot)
        if state.listens:
            # It carries the stream's results that are ready, too: those of others stay for the next step.
            tensors["turns"] = torch.frombuffer(
                bytearray(self._turns.export(state.stream)), dtype=torch.uint8
            )
        host = {
            "frames_done": frames,
            "transcript": state.transcript.export(),
            # What was read and not yet returned belongs to the stream's results, here or there.
            "unsent": [asdict(output) for output in unsent],
        }
        return Snapshot(self._fingerprint, host, tensors).to_bytes()

    def _kept_frames(self, slot: int, frames: int) -> tuple[torch.Tensor, torch.Tensor]:
        """Page and offset of the frames whose keys and values later chunks can still see."""
        kept = np.arange(max(0, frames - self._left_frames), frames, dtype=np.int64)
        pages, offsets = self._blocks.locate(slot, kept)
        device = self._steps.state.tail_SZ.device
        return torch.from_numpy(pages).to(device), torch.from_numpy(offsets).to(device)
