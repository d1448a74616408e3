"""The phrases of each stream, and the frames from which other phrases hold."""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass, field

from common.entries import StreamId
from gpu_worker.engine.interface import EngineError
from gpu_worker.engine.phrases.book import ListInUse, PhraseBook, PhraseList
from gpu_worker.engine.phrases.tree_memory import NO_TREE, TreeMemory
from gpu_worker.engine.slots.slot_table import SlotTable
from gpu_worker.engine.stream import Stream
from gpu_worker.engine.warm_up import WarmUps


@dataclass(frozen=True, slots=True)
class _Change:
    """A list that holds from encoder frame `frame` on, the first of a chunk; `entry` None is no phrases."""

    frame: int
    entry: ListInUse | None
    anew: bool


@dataclass(slots=True)
class _Phrases:
    """The phrases of one stream that has, had, or will have phrases."""

    state: Stream
    now: ListInUse | None = None
    changes: deque[_Change] = field(default_factory=deque)


class StreamPhrases:
    """The phrases of all streams; for the engine's thread.  A stream that never had any costs nothing here.

    common: phrases of all streams, besides their own.

    A change comes into force between two chunks, and the slot table plans nothing past it before. So a
    stream's results do not depend on when its new tree is built, nor on the number of chunks in a step.
    """

    def __init__(
        self,
        trees: TreeMemory,
        table: SlotTable,
        warm_ups: WarmUps,
        book: PhraseBook,
        common: PhraseList = (),
    ) -> None:
        self._trees, self._table, self._warm_ups, self._book = trees, table, warm_ups, book
        self._streams: dict[StreamId, _Phrases] = {}
        self._changing: dict[StreamId, _Phrases] = {}
        self._common = book.hold(common) if common else None
        if self._common is not None:
            book.place(self._common)
            trees.use_for_all(self._common.at)

    def begin(self, state: Stream, phrases: PhraseList, frame: int, *, anew: bool = True) -> None:
        """Begin a new or restored stream at a frame. anew: whether the phrases hold only from there on."""
        if phrases:
            self._put(state, phrases, frame, anew=anew)

    def replace(self, state: Stream, phrases: PhraseList, sample: int) -> None:
        """Replace the phrases from the first chunk on that begins at `sample` or later."""
        clock = self._table.clock
        frame = -(-sample // clock.chunk_samples) * clock.chunk_frames
        warm_up = self._warm_ups.get(state.slot)
        # Earlier changes come from a replay: the stream's snapshot contains them.
        if frame >= (int(self._table.planned[state.slot]) if warm_up is None else warm_up.frames):
            self._put(state, phrases, frame, anew=True)

    def _put(self, state: Stream, phrases: PhraseList, frame: int, *, anew: bool) -> None:
        found = self._streams.get(state.stream)
        if found is None:
            if not phrases:
                return
            found = self._streams[state.stream] = _Phrases(state)
        while found.changes and found.changes[-1].frame >= frame:
            self._release(found.changes.pop().entry)
        entry = self._book.hold(phrases) if phrases else None
        found.changes.append(_Change(frame, entry, anew))
        self._limit(found)

    def _limit(self, found: _Phrases) -> None:
        if found.changes:
            self._changing[found.state.stream] = found
            self._table.set_limit(found.state.slot, found.changes[0].frame)
        else:
            self._changing.pop(found.state.stream, None)
            self._table.set_limit(found.state.slot, None)

    def told(self, stream: StreamId) -> PhraseList:
        """Return the newest phrases that were set for a stream."""
        found = self._streams.get(stream)
        if found is None:
            return ()
        entry = found.changes[-1].entry if found.changes else found.now
        return entry.phrases if entry is not None else ()

    def at_snapshot(self, stream: StreamId) -> tuple[PhraseList, bool]:
        """Return the phrases for the next chunk, and whether that chunk is the first with them."""
        found = self._streams.get(stream)
        if found is None:
            return (), False
        entry, anew, decoded = found.now, False, int(self._table.decoded[found.state.slot])
        for change in found.changes:
            if change.frame <= decoded:
                entry, anew = change.entry, change.anew
        return (entry.phrases if entry is not None else ()), anew

    def has_due(self) -> bool:
        """Return whether `come_into_force` would change anything."""
        return any(map(self._is_due, self._changing.values()))

    def _is_due(self, found: _Phrases) -> bool:
        if not found.changes:
            return False
        change, slot, table = found.changes[0], found.state.slot, self._table
        # A change that fails ends its stream, so all results before it have to be returned first.
        return (
            change.frame <= int(table.planned[slot]) == int(table.decoded[slot])
            and not table.held[slot]
            and slot not in self._warm_ups
            and (change.entry is None or change.entry.is_built)
        )

    def come_into_force(self) -> list[tuple[Stream, EngineError]]:
        """Make the changes whose chunk is next and whose tree is built.

        Returns the streams whose change fails, with the errors.
        """
        failed: list[tuple[Stream, EngineError]] = []
        for found in list(self._changing.values()):
            while self._is_due(found):
                change = found.changes.popleft()
                try:
                    self._use(found, change)
                except EngineError as error:
                    self._release(change.entry)
                    failed.append((found.state, error))
                    break
                self._release(found.now)
                found.now = change.entry
                self._limit(found)
        return failed

    def _use(self, found: _Phrases, change: _Change) -> None:
        slot, entry = found.state.slot, change.entry
        if entry is None:
            self._trees.use(slot, NO_TREE, 0, anew=True)
        else:
            self._book.place(entry)
            self._trees.use(slot, entry.at, entry.num_nodes, anew=change.anew)

    def drop(self, state: Stream) -> None:
        """Release all that a stream holds."""
        found = self._streams.pop(state.stream, None)
        self._changing.pop(state.stream, None)
        if found is None:
            return
        if found.now is not None:
            self._trees.use(state.slot, NO_TREE, 0, anew=True)
        self._release(found.now)
        for change in found.changes:
            self._release(change.entry)

    def _release(self, entry: ListInUse | None) -> None:
        if entry is not None:
            self._book.release(entry)

    def check_integrity(self) -> None:
        """Raise AssertionError when lists and their users do not add up."""
        users = int(self._common is not None)
        for stream, found in self._streams.items():
            assert found.state.stream == stream, "phrases stand under another stream"
            users += (found.now is not None) + sum(change.entry is not None for change in found.changes)
            frames = [change.frame for change in found.changes]
            assert frames == sorted(set(frames)), f"the changes of stream {stream} are out of order"
            limit = int(self._table.limit[found.state.slot])
            assert (stream in self._changing) == bool(frames), f"stream {stream} waits for nothing"
            assert not frames or limit == frames[0], f"stream {stream} is planned past its phrases"
        self._book.check_integrity(users)
