"""The open streams of an engine, each with a slot of its own."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from common.entries import StreamId
from common.options import StreamOptions
from gpu_worker.engine.interface import EngineFull, UnknownStream
from gpu_worker.engine.transcript import Transcript


@dataclass(slots=True)
class Stream:
    """The state of a stream besides its row of arrays.

    `order` counts openings: a higher number is newer. `prompt`: index of its language's prompt. `listens`:
    whether it has turn detection.
    """

    stream: StreamId
    slot: int
    order: int
    options: StreamOptions
    prompt: int
    transcript: Transcript
    listens: bool


class OpenStreams:
    """The assignment of slots to streams."""

    def __init__(self, num_slots: int) -> None:
        self.capacity = num_slots
        self.by_slot: list[Stream | None] = [None] * num_slots
        self._by_id: dict[StreamId, Stream] = {}
        self._free_slots = list(range(num_slots - 1, -1, -1))

    def vacant_slot(self, stream: StreamId) -> int:
        """Return the slot that `add` will use. Raises ValueError for an open stream, and EngineFull."""
        if stream in self._by_id:
            raise ValueError(f"stream {stream} is open")
        if not self._free_slots:
            raise EngineFull(f"All {self.capacity} slots of the engine are taken.")
        return self._free_slots[-1]

    def add(self, state: Stream) -> None:
        """Open a stream in the slot that `vacant_slot` returned."""
        slot = self._free_slots.pop()
        assert slot == state.slot, "a stream takes a slot that is not next"
        self._by_id[state.stream] = self.by_slot[slot] = state

    def get(self, stream: StreamId) -> Stream:
        """Return a stream. Raises UnknownStream."""
        state = self._by_id.get(stream)
        if state is None:
            raise UnknownStream(f"Stream {stream} is not open in this engine.")
        return state

    def remove(self, state: Stream) -> None:
        """Close a stream and free its slot."""
        del self._by_id[state.stream]
        self.by_slot[state.slot] = None
        self._free_slots.append(state.slot)

    def __len__(self) -> int:
        return len(self._by_id)

    def __contains__(self, stream: StreamId) -> bool:
        return stream in self._by_id

    def __iter__(self) -> Iterator[Stream]:
        return iter(self._by_id.values())

    @property
    def free_slots(self) -> tuple[int, ...]:
        """Return the slots that no stream has."""
        return tuple(self._free_slots)

    def check_integrity(self) -> None:
        """Raise AssertionError unless every slot is free or has one stream."""
        slots = [state.slot for state in self]
        assert sorted(slots + self._free_slots) == list(range(self.capacity)), "a slot is lost or given twice"
        for stream, state in self._by_id.items():
            assert state.stream == stream, "a stream stands under another's id"
            assert self.by_slot[state.slot] is state, f"the slot of stream {stream} has another"
        for slot in self._free_slots:
            assert self.by_slot[slot] is None, f"the free slot {slot} has a stream"
