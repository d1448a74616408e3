"""Snapshots of an engine's streams: the state of a slot on the device and on the host.

A snapshot is taken between two steps, while no step of the stream runs. A whole snapshot has all of the
slot's state. If `StepShape.reach_frames` is set, it leaves out the state that can be computed again from the
audio before it (`gpu_worker.engine.warm_up`).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from functools import partial
from typing import Any, Final

import numpy as np

from common.errors import EntryError
from common.phrases import encode_phrases
from gpu_worker.engine.interface import SnapshotMismatch, StreamOutput, StreamSnapshot
from gpu_worker.engine.phrases.book import PhraseList
from gpu_worker.engine.slots.block_manager import BlockManager
from gpu_worker.engine.slots.sample_rings import SampleRings
from gpu_worker.engine.slots.slot_table import SlotTable
from gpu_worker.engine.snapshot import PHRASES, Snapshot, phrases_of
from gpu_worker.engine.steps import Export, KeptFrames, Steps
from gpu_worker.engine.stored_output import decode_output
from gpu_worker.engine.stream import Stream
from gpu_worker.engine.warm_up import WarmUp, WarmUps, first_frame
from gpu_worker.turn.settings import TurnSettings
from gpu_worker.turn.stage import TurnStage

_TURNS: Final = "turns"
_ANEW: Final = "phrases_anew"


class SlotSnapshots:
    """Takes and restores snapshots."""

    def __init__(
        self,
        steps: Steps,
        table: SlotTable,
        rings: SampleRings,
        blocks: BlockManager,
        turns: TurnStage,
        warm_ups: WarmUps,
    ) -> None:
        self._steps, self._table, self._rings = steps, table, rings
        self._blocks, self._turns, self._warm_ups = blocks, turns, warm_ups

    def read(self, data: bytes) -> Snapshot:
        """Read a snapshot. Raises SnapshotMismatch for another model or layout."""
        return Snapshot.from_bytes(data, self._steps.shape.fingerprint)

    def restore(self, state: Stream, settings: TurnSettings, restored: Snapshot) -> list[StreamOutput]:
        """Fill the stream's slot, or begin to warm it up; return outputs that were not delivered yet.

        Raises SnapshotMismatch, OutOfPages.
        """
        slot, host = state.slot, restored.host
        try:
            frames, first = int(host["frames_done"]), int(host["first_frame"])
            if not 0 <= first <= frames:
                raise ValueError(f"frame {first} is not before frame {frames}")
            clock = self._table.clock
            samples, begin = clock.samples_of_frames(frames), clock.samples_of_frames(first)
            self._table.open(slot, state.order, first, begin, recording=state.options.recording)
            self._blocks.grow(slot, first)
            state.transcript.load(host["transcript"])
            if first == frames:
                self._rings.open(slot, begin)
                return self._fill(state, settings, restored, self._kept_frames(slot, frames))
            self._rings.open(slot, begin, until=samples)
            # A snapshot that does not fit has to be refused now.
            self._load(slot, restored, None)
            self._warm_ups.add(WarmUp(state, settings, restored, frames, samples))
            return []
        except (KeyError, ValueError, TypeError) as error:
            raise SnapshotMismatch(f"The snapshot does not fit this engine: {error}.") from error

    def complete(self, warm_up: WarmUp) -> list[StreamOutput]:
        """End a warm-up: the stream goes on after its snapshot; return outputs that were not delivered yet.

        Raises SnapshotMismatch.
        """
        slot = warm_up.state.slot
        try:
            outputs = self._fill(warm_up.state, warm_up.settings, warm_up.snapshot, None)
        except (KeyError, ValueError, TypeError) as error:
            raise SnapshotMismatch(f"The snapshot does not fit this engine: {error}.") from error
        self._warm_ups.drop(slot)
        self._rings.lift(slot)
        return outputs

    def _fill(
        self, state: Stream, settings: TurnSettings, restored: Snapshot, kept: KeptFrames | None
    ) -> list[StreamOutput]:
        self._load(state.slot, restored, kept)
        if state.listens:
            turns = bytes(restored.buffers[_TURNS])
            self._turns.open(state.stream, settings, state.transcript, turns, slot=state.slot)
        return [decode_output(state.stream, values) for values in restored.host["unsent"]]

    def _load(self, slot: int, restored: Snapshot, kept: KeptFrames | None) -> None:
        if restored.host["frames_done"]:
            buffers = {name: memoryview(data) for name, data in restored.buffers.items() if name != _TURNS}
            self._steps.load(slot, kept, buffers)

    @staticmethod
    def phrases(restored: Snapshot) -> tuple[PhraseList, bool]:
        """Return the phrases in force after a snapshot, and whether they hold only from there on.

        Raises SnapshotMismatch.
        """
        try:
            return phrases_of(restored.host), bool(restored.host.get(_ANEW))
        except (EntryError, ValueError) as error:
            raise SnapshotMismatch(f"The snapshot does not fit this engine: {error}.") from error

    def take(
        self, state: Stream, unsent: Sequence[StreamOutput], phrases: PhraseList, anew: bool, *, whole: bool
    ) -> StreamSnapshot:
        """Return the stream's state. unsent: its outputs that were not delivered yet.

        phrases, anew: see `StreamPhrases.at_snapshot`.
        The copy from the device to the host may still be running; `to_bytes` waits for it.
        """
        slot, shape, clock = state.slot, self._steps.shape, self._table.clock
        frames = int(self._table.decoded[slot])
        # The slot of a stream that has decoded nothing still holds the state of an earlier stream.
        export: Export = dict
        first = frames
        if frames:
            if shape.reach_frames and not whole:
                first = first_frame(frames, shape.reach_frames)
            export = self._steps.export(slot, self._kept_frames(slot, frames) if first == frames else None)
        # The snapshot takes the stream's ready results too; those of others stay for the next step.
        turns = {_TURNS: self._turns.export(state.stream)} if state.listens else {}
        host = {
            "frames_done": frames,
            "first_frame": first,
            "transcript": state.transcript.export(),
            # Outputs that were read and not returned belong to the stream's results, here or there.
            "unsent": [asdict(output) for output in unsent],
        }
        if phrases or anew:
            host |= {PHRASES: encode_phrases(phrases).decode(), _ANEW: anew}
        return StreamSnapshot(
            clock.samples_of_frames(frames),
            clock.samples_of_frames(first),
            partial(_to_bytes, shape.fingerprint, host, export, turns),
        )

    def _kept_frames(self, slot: int, frames: int) -> KeptFrames:
        """Return the frames whose keys and values later chunks can still see."""
        first = max(0, frames - self._steps.shape.pages.left_frames)
        return KeptFrames(*self._blocks.locate(slot, np.arange(first, frames, dtype=np.int64)))


def _to_bytes(fingerprint: str, host: Mapping[str, Any], export: Export, turns: Mapping[str, bytes]) -> bytes:
    return Snapshot(fingerprint, host, {**export(), **turns}).to_bytes()
