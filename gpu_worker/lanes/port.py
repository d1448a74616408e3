"""The group's side of one lane: the lane's flights and requests, in the lane's order.

A lane is another process and may be faulty, so everything that it sends is checked: slots and pages are
counted from the lane's first, and a number that is not its own ends this lane, and no other.
"""

from __future__ import annotations

import logging
import queue
import socket
import threading
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from gpu_worker.boosting.tree import PhraseTree
from gpu_worker.engine.phrases.tree_memory import NO_TREE
from gpu_worker.engine.steps import SPARE_HOPS, UNKNOWN_END, Field, KeptFrames, StepFindings, StepShape
from gpu_worker.engine.steps import Export as Exported
from gpu_worker.lanes.bell import Bell
from gpu_worker.lanes.segment import NUM_BUFFERS, FlightBuffer, LaneArea
from gpu_worker.lanes.wire import MAX_BYTES, WireFault, hang_up, receive, send

logger = logging.getLogger(__name__)

# Most requests of a lane that may wait: a few for each slot, since all streams may end, or change their
# phrases, while one step runs; and some for snapshots, which it requests only when the last ones are written.
_REQUESTS_OF_A_SLOT: Final = 8
_OTHER_REQUESTS: Final = 4096
# Most bytes that wait with them: one state, since a lane loads one after the other, and its trees several
# times.
_STATE_BYTES: Final = MAX_BYTES
_TREES_AT_ONCE: Final = 4
# Most answers that wait for a lane to read them: twice the snapshots that it takes before it has written any.
MAX_ANSWERS: Final = 512


class LaneFault(Exception):  # noqa: N818 - it says what it is
    """A lane has sent something invalid."""


@dataclass(frozen=True, slots=True)
class Share:
    """A lane's part of the device: slots and pages from its first ones on, as many as `shape` has."""

    shape: StepShape
    first_slot: int
    first_page: int
    no_page: int
    """The number that stands for no page, among all pages of the device."""
    num_prompts: int
    first_word: int = 0
    num_words: int = 0
    """Size of its part of the arena of boosting trees, in int32."""
    num_tokens: int = 0
    """Number of tokens of a tree's vocabulary."""


@dataclass(frozen=True, slots=True)
class Export:
    """Request for a slot's state; slots and pages are those of the device, as in all requests."""

    number: int
    slot: int
    kept: KeptFrames | None


@dataclass(frozen=True, slots=True)
class Load:
    """Request to load a state into a slot."""

    number: int
    slot: int
    kept: KeptFrames | None
    state: dict[str, memoryview]


@dataclass(frozen=True, slots=True)
class PutTree:
    """Request to write a boosting tree to a place."""

    at: int
    tree: PhraseTree


@dataclass(frozen=True, slots=True)
class DropTree:
    """Request to free a place."""

    at: int


@dataclass(frozen=True, slots=True)
class UseTree:
    """Request to decode a slot with a tree, or NO_TREE."""

    slot: int
    at: int
    num_nodes: int
    anew: bool


Request = Export | Load | PutTree | DropTree | UseTree


@dataclass(frozen=True, slots=True, eq=False)
class LaneFlight:
    """The rows of a lane's launched flight, with slots and pages of the device."""

    port: LanePort
    buffer: FlightBuffer
    rows_FB: NDArray[np.int32]
    table_BM: NDArray[np.int32]
    resets_R2: NDArray[np.int64]
    num_chunks: int

    @property
    def num_rows(self) -> int:
        """Number of rows: B."""
        return int(self.rows_FB.shape[1])


class LanePort:
    """The group's side of one lane.

    Args:
        share: the lane's part of the device.
        area: the memory that both share.
        link: the socket to the lane.
        bell: wakes the lane.
        wake: wakes the thread that runs steps.
    """

    def __init__(
        self, share: Share, area: LaneArea, link: socket.socket, bell: Bell, wake: Callable[[], None]
    ) -> None:
        self.share = share
        self._area = area
        self._link = link
        self._bell = bell
        self._wake = wake
        self._requests: deque[tuple[int, int, Request]] = deque()
        self._max_requests = _REQUESTS_OF_A_SLOT * share.shape.num_slots + _OTHER_REQUESTS
        self._max_bytes = _STATE_BYTES + _TREES_AT_ONCE * 4 * share.num_words
        # Bytes of received requests, and of handled ones; each is written by one thread.
        self._bytes_come = self._bytes_done = 0
        # Sizes and nodes of the lane's trees by their places, according to its requests so far.
        self._trees: dict[int, PhraseTree] = {}
        self._answers: queue.SimpleQueue[tuple[dict[str, Any], Exported] | None] = queue.SimpleQueue()
        self._num_taken = 0
        self._num_answered = 0
        self._num_asked = 0
        self.gone = False
        # Places of its trees in the arena, and slots that use one; for the thread that runs steps.
        self.places: set[int] = set()
        self.boosted: set[int] = set()
        self._listener = threading.Thread(target=self._listen, name="lane-requests", daemon=True)
        self._sender = threading.Thread(target=self._send, name="lane-answers", daemon=True)

    def start(self) -> None:
        """Begin to listen."""
        self._sender.start()
        self._listener.start()

    def close(self) -> None:
        """End the lane: it sees its socket end."""
        self.gone = True
        self._answers.put(None)
        hang_up(self._link)

    # For the thread that runs steps

    @property
    def num_waiting(self) -> int:
        """Number of requests that wait."""
        return len(self._requests)

    def next_request(self) -> Request | None:
        """Return the next request, once all flights that were launched before it are taken; else None."""
        if self._requests and self._requests[0][0] <= self._num_taken:
            _, num_bytes, request = self._requests.popleft()
            self._num_asked += 1
            self._bytes_done += num_bytes
            return request
        return None

    def next_flight(self) -> LaneFlight | None:
        """Return the next flight; None where there is none yet, or a request comes before it.

        Raises LaneFault.
        """
        launched = self._area.launched
        if launched <= self._num_taken:
            return None
        if launched > self._num_answered + NUM_BUFFERS:
            raise LaneFault(f"{launched - self._num_answered} flights at once")
        buffer = self._area.flight(self._num_taken)
        if buffer.num_requests > self._num_asked:
            return None
        return self._checked(buffer)

    def take(self) -> None:
        """Note, before the launch, that the group begins with the flight that `next_flight` returned."""
        self._num_taken += 1
        self._area.taken = self._num_taken

    def answer(
        self, flight: LaneFlight, found: StepFindings, rows: slice, stages: NDArray[np.float64]
    ) -> None:
        """Write the findings of the lane's rows to the shared memory. rows: the lane's rows of the step."""
        flight.buffer.answer(found, rows, stages)
        self._num_answered += 1
        self._area.done = self._num_answered
        self._bell.ring()

    def tell(self, message: dict[str, Any]) -> None:
        """Send a message that answers no request. Neither this nor an answer waits for the lane."""
        self._put(message, dict)

    def say(self, number: int, fault: Exception | None = None) -> None:
        """Answer a request that has no state to send."""
        message: dict[str, Any] = {"number": number}
        if fault is not None:
            why = fault.args[0] if fault.args else ""
            message |= {"fault": type(fault).__name__, "why": str(why)}
        self.tell(message)

    def send_export(self, number: int, export: Exported) -> None:
        """Send a state once it is on the host; the step's thread does not wait for that."""
        self._put({"number": number}, export)

    def _put(self, message: dict[str, Any], export: Exported) -> None:
        if self._answers.qsize() >= MAX_ANSWERS and not self.gone:
            logger.error("a lane is ended: it reads none of %d answers", MAX_ANSWERS)
            self.close()
        if not self.gone:
            self._answers.put((message, export))

    def _checked(self, buffer: FlightBuffer) -> LaneFlight:
        share, shape = self.share, self.share.shape
        try:
            rows, table, resets = buffer.read()
        except ValueError as error:
            raise LaneFault(str(error)) from error
        clock, pages = shape.clock, shape.pages.num_pages
        slots, frames = rows[Field.SLOT], rows[Field.FRAMES]
        if not (
            _within(slots, shape.num_slots)
            and len(np.unique(slots)) == rows.shape[1]
            and _within(frames, shape.max_chunks * clock.chunk_frames + 1)
            and _within(rows[Field.START], UNKNOWN_END // clock.frame_samples)
            and _within(rows[Field.TOTAL], UNKNOWN_END + 1)
            and _within(rows[Field.FLOAT], 2)
            and _within(table, pages + 1)
            and _within(resets[:, 0], shape.num_slots)
            and _within(resets[:, 1], share.num_prompts)
        ):
            raise LaneFault("rows of slots, pages or frames that are not its own")
        chunks = max(1, -(-int(frames.max()) // clock.chunk_frames))
        most_heard = chunks * clock.chunk_samples + SPARE_HOPS * clock.hop_samples
        if not _within(rows[Field.HEARD], most_heard + 1):
            raise LaneFault(f"rows of {chunks} chunks, of which {rows[Field.HEARD].max()} samples are heard")
        rows[Field.SLOT] += share.first_slot
        table = np.where(table == pages, share.no_page, table + share.first_page).astype(np.int32)
        resets[:, 0] += share.first_slot
        return LaneFlight(self, buffer, rows, table, resets, chunks)

    # Threads

    def _listen(self) -> None:
        try:
            while (received := receive(self._link)) is not None:
                message, buffers = received
                num_bytes = sum(map(len, buffers.values()))
                self._bytes_come += num_bytes
                self._requests.append((int(message["after"]), num_bytes, self._read(message, buffers)))
                waiting, waiting_bytes = len(self._requests), self._bytes_come - self._bytes_done
                if waiting > self._max_requests or waiting_bytes > self._max_bytes:
                    raise LaneFault(f"{waiting} requests of {waiting_bytes} bytes at once")
                self._wake()
        except (WireFault, LaneFault, KeyError, TypeError, ValueError, OverflowError) as error:
            logger.error("a lane is ended: it asks for what cannot be: %s", error)
        finally:
            self.close()
            self._wake()
            self._sender.join()  # a descriptor that is closed during a call may be another file's by then
            self._link.close()

    def _read(self, message: dict[str, Any], buffers: dict[str, memoryview]) -> Request:
        """Read a request. Raises LaneFault, KeyError, TypeError, ValueError."""
        what = message["what"]
        if what in ("export", "load"):
            number, slot, kept = int(message["number"]), self._slot(message), self._kept(message["kept"])
            return Export(number, slot, kept) if what == "export" else Load(number, slot, kept, buffers)
        at, first = int(message["at"]), self.share.first_word
        if what == "put":
            words = np.frombuffer(buffers["words"], dtype=np.int32)
            if not 0 <= at <= self.share.num_words - len(words) or self._overlaps(at, at + len(words)):
                raise LaneFault(f"a tree at word {at}")
            tree = self._trees[at] = PhraseTree.from_words(words, self.share.num_tokens)
            return PutTree(first + at, tree)
        if what == "drop":
            del self._trees[at]
            return DropTree(first + at)
        if what != "use":
            raise LaneFault(f"'{what}'")
        nodes = self._trees[at].num_nodes if at != NO_TREE else 0
        place = first + at if at != NO_TREE else NO_TREE
        return UseTree(self._slot(message), place, min(int(message["nodes"]), nodes), bool(message["anew"]))

    def _overlaps(self, begin: int, end: int) -> bool:
        return any(begin < at + len(tree.words) and at < end for at, tree in self._trees.items())

    def _slot(self, message: dict[str, Any]) -> int:
        slot = int(message["slot"])
        if not 0 <= slot < self.share.shape.num_slots:
            raise LaneFault(f"{message['what']} of slot {slot}")
        return slot + self.share.first_slot

    def _kept(self, kept: list[list[int]] | None) -> KeptFrames | None:
        if kept is None:
            return None
        pages = self.share.shape.pages
        pages_N, offsets_N = (np.array(part, dtype=np.int64) for part in kept)
        if (
            pages_N.ndim != 1
            or pages_N.shape != offsets_N.shape
            or not _within(pages_N, pages.num_pages)
            or not _within(offsets_N, pages.page_frames)
        ):
            raise LaneFault("pages that are not its own")
        return KeptFrames(pages_N + self.share.first_page, offsets_N)

    def _send(self) -> None:
        # The only thread that writes to the socket: messages never mix.
        while (answer := self._answers.get()) is not None:
            message, export = answer
            try:
                send(self._link, message, export())
            except OSError:  # the lane is gone, which the other thread notices
                return


def _within(values: NDArray[Any], end: int) -> bool:
    return bool(((values >= 0) & (values < end)).all())
