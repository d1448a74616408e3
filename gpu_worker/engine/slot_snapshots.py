"""Snapshots of an engine's streams: what a slot holds, on the device and on the host.

A snapshot is taken between two steps, with no step of the stream under way.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from typing import Final

import numpy as np
from numpy.typing import NDArray

from gpu_worker.engine.interface import SnapshotMismatch, StreamOutput
from gpu_worker.engine.slots.block_manager import BlockManager
from gpu_worker.engine.slots.sample_rings import SampleRings
from gpu_worker.engine.slots.slot_table import SlotTable
from gpu_worker.engine.snapshot import Snapshot
from gpu_worker.engine.steps import Steps
from gpu_worker.engine.stored_output import decode_output
from gpu_worker.engine.stream import Stream
from gpu_worker.turn.settings import TurnSettings
from gpu_worker.turn.stage import TurnStage

_TURNS: Final = "turns"


class SlotSnapshots:
    """Takes and restores them."""

    def __init__(
        self, steps: Steps, table: SlotTable, rings: SampleRings, blocks: BlockManager, turns: TurnStage
    ) -> None:
        self._steps, self._table, self._rings = steps, table, rings
        self._blocks, self._turns = blocks, turns

    def read(self, data: bytes) -> Snapshot:
        """Raises SnapshotMismatch for another model or layout."""
        return Snapshot.from_bytes(data, self._steps.shape.fingerprint)

    def restore(self, state: Stream, settings: TurnSettings, restored: Snapshot) -> list[StreamOutput]:
        """Fill the stream's slot; returns outputs that were ready when the snapshot was taken.

        Raises SnapshotMismatch, OutOfPages.
        """
        slot, host, buffers = state.slot, restored.host, dict(restored.buffers)
        try:
            turns = bytes(buffers.pop(_TURNS) if state.listens else buffers.pop(_TURNS, b""))
            frames = int(host["frames_done"])
            samples = self._table.clock.samples_of_frames(frames)
            self._table.open(slot, state.order, frames, samples)
            self._rings.open(slot, samples)
            state.transcript.load(host["transcript"])
            self._blocks.grow(slot, frames)
            if frames:
                kept = self._kept_frames(slot, frames)
                self._steps.load(slot, *kept, {name: memoryview(data) for name, data in buffers.items()})
            if state.listens:
                self._turns.open(state.stream, settings, state.transcript, turns, slot=slot)
            return [decode_output(state.stream, values) for values in host["unsent"]]
        except (KeyError, ValueError, TypeError) as error:
            raise SnapshotMismatch(f"The snapshot does not fit this engine: {error}.") from error

    def take(self, state: Stream, unsent: Sequence[StreamOutput]) -> bytes:
        """The stream's state; `unsent` are its outputs that nobody has got yet."""
        slot = state.slot
        frames = int(self._table.decoded[slot])
        # Of a stream that has decoded nothing the slot still holds what was there before.
        buffers: dict[str, bytes | memoryview] = {}
        if frames:
            buffers |= self._steps.export(slot, *self._kept_frames(slot, frames))
        if state.listens:
            # It carries the stream's results that are ready, too: those of others stay for the next step.
            buffers[_TURNS] = self._turns.export(state.stream)
        host = {
            "frames_done": frames,
            "transcript": state.transcript.export(),
            # What was read and not yet returned belongs to the stream's results, here or there.
            "unsent": [asdict(output) for output in unsent],
        }
        return Snapshot(self._steps.shape.fingerprint, host, buffers).to_bytes()

    def _kept_frames(self, slot: int, frames: int) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """Page and offset of the frames whose keys and values later chunks can still see."""
        first = max(0, frames - self._steps.shape.pages.left_frames)
        return self._blocks.locate(slot, np.arange(first, frames, dtype=np.int64))
