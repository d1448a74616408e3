"""The open streams of an engine by id, each with a slot of its own."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Generic, Protocol, TypeVar

from common.entries import StreamId
from gpu_worker.engine.interface import EngineFull, UnknownStream


class HasSlot(Protocol):
    """What an engine keeps of a stream."""

    @property
    def stream(self) -> StreamId: ...
    @property
    def slot(self) -> int: ...


S = TypeVar("S", bound=HasSlot)


class OpenStreams(Generic[S]):
    """Gives slots to streams and takes them back."""

    def __init__(self, num_slots: int) -> None:
        self.capacity = num_slots
        self.by_id: dict[StreamId, S] = {}
        self._free_slots = list(range(num_slots - 1, -1, -1))

    def vacant_slot(self, stream: StreamId) -> int:
        """The slot that `add` would give.  Raises ValueError for an open stream, and EngineFull."""
        if stream in self.by_id:
            raise ValueError(f"stream {stream} is open")
        if not self._free_slots:
            raise EngineFull(f"All {self.capacity} slots of the engine are taken.")
        return self._free_slots[-1]

    def add(self, state: S) -> None:
        """Open a stream that has the slot that `vacant_slot` told."""
        slot = self._free_slots.pop()
        assert slot == state.slot, "a stream takes a slot that is not next"
        self.by_id[state.stream] = state

    def get(self, stream: StreamId) -> S:
        """Raises UnknownStream."""
        state = self.by_id.get(stream)
        if state is None:
            raise UnknownStream(f"Stream {stream} is not open in this engine.")
        return state

    def remove(self, state: S) -> None:
        """Close a stream and take its slot back."""
        del self.by_id[state.stream]
        self._free_slots.append(state.slot)

    def __len__(self) -> int:
        return len(self.by_id)

    def __contains__(self, stream: StreamId) -> bool:
        return stream in self.by_id

    def __iter__(self) -> Iterator[S]:
        return iter(self.by_id.values())

    @property
    def free_slots(self) -> tuple[int, ...]:
        """Slots that no stream has."""
        return tuple(self._free_slots)

    def check_integrity(self) -> None:
        """Raise AssertionError unless every slot is free or has one stream."""
        slots = [state.slot for state in self]
        assert sorted(slots + self._free_slots) == list(range(self.capacity)), "a slot is lost or given twice"
        for stream, state in self.by_id.items():
            assert state.stream == stream, "a stream stands under another's id"
