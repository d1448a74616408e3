"""The steps of a lane: rows go into memory that the group reads, symbols come back there.

A lane has a share of the device's slots and pages and counts both from 0. The group merges its flights with
those of other lanes, so that a step of the device may have ten times the rows of a lane; `wait` returns when
the lane's own rows are done.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from concurrent.futures import Future
from typing import Any

import numpy as np
from numpy.typing import NDArray

from gpu_worker.engine.interface import EngineStats
from gpu_worker.engine.phrases.tree_memory import TreeMemory
from gpu_worker.engine.steps import Export, Flight, KeptFrames, RingMemory, StepFindings, StepShape
from gpu_worker.lanes.bell import Bell
from gpu_worker.lanes.link import GroupLink, GroupLost
from gpu_worker.lanes.segment import NUM_BUFFERS, LaneArea
from gpu_worker.lanes.trees import LaneTrees

_FAULTS = {"KeyError": KeyError, "ValueError": ValueError}


class LaneSteps:
    """The steps of a lane.

    Args:
        shape: shape of this lane's steps.
        rings: rings of this lane's slots.
        area: the memory that it shares with the group.
        group_bell, bell: wake the group, and this lane.
        link: sends rare requests.
        phrase_words: the lane's part of the arena of boosting trees, in int32.
    """

    def __init__(
        self,
        shape: StepShape,
        rings: RingMemory,
        area: LaneArea,
        group_bell: Bell,
        bell: Bell,
        link: GroupLink,
        phrase_words: int = 0,
    ) -> None:
        self.shape = shape
        self.stats = EngineStats()
        self.rings = rings
        self._area = area
        self._group_bell, self._bell = group_bell, bell
        self._link = link
        self.trees: TreeMemory = LaneTrees(phrase_words, self.tell)
        self._num_launched = 0
        self._resets: list[tuple[int, int]] = []
        self._loading: int | None = None
        # Whether the engine's thread waits for the group; for any thread.
        self.waits_for_group = False

    def reset(self, slots: Sequence[int], prompts: Sequence[int]) -> None:
        # Resets are sent with the next flight, which is the first that could name these slots.
        self._resets += zip(slots, prompts, strict=True)

    def launch(self, rows_FB: NDArray[np.int32], table_BM: NDArray[np.int32]) -> Flight:
        number = self._num_launched
        assert number < self._area.done + NUM_BUFFERS, "more flights are under way than there are buffers"
        resets = np.array(self._resets, dtype=np.int64).reshape(-1, 2)
        self._resets.clear()
        self._area.flight(number).write(rows_FB, table_BM, resets, self._link.num_requests)
        self._num_launched = number + 1
        self._area.launched = self._num_launched
        self._group_bell.ring()
        return Flight(rows_FB.shape[1], number)

    def is_over(self, flight: Flight) -> bool:
        number = flight.token
        assert isinstance(number, int)
        return self._area.done > number or self._link.lost

    def wait(self, flight: Flight) -> StepFindings:
        number = flight.token
        assert isinstance(number, int)
        while self._area.done <= number:
            if self._link.lost:
                raise GroupLost("The process with the device is gone.")
            self.waits_for_group = True
            self._bell.wait()
        self.waits_for_group = False
        buffer = self._area.flight(number)
        buffer.count_stages(self.stats)
        return buffer.findings(flight.num_rows)

    def slots_under_way(self) -> set[int]:
        """Return the slots of flights that the group has begun with and not answered, and one that is loaded.

        For any thread.
        """
        launched = self._num_launched
        first, end = max(self._area.done, launched - NUM_BUFFERS), min(self._area.taken, launched)
        flights = map(self._area.flight, range(first, end))
        slots = set[int]().union(*(flight.slots for flight in flights))
        return slots if self._loading is None else slots | {self._loading}

    def export(self, slot: int, kept: KeptFrames | None) -> Export:
        answer = self._ask("export", slot, kept)
        return lambda: answer.result()[1]

    def load(self, slot: int, kept: KeptFrames | None, state: Mapping[str, memoryview]) -> None:
        self._loading, self.waits_for_group = slot, True
        message, _ = self._ask("load", slot, kept, state).result()
        self._loading, self.waits_for_group = None, False
        fault = message.get("fault")
        if fault is not None:
            raise _FAULTS.get(fault, ValueError)(message["why"])

    def _ask(
        self,
        what: str,
        slot: int,
        kept: KeptFrames | None,
        buffers: Mapping[str, memoryview] | None = None,
    ) -> Future[tuple[dict[str, Any], dict[str, memoryview]]]:
        frames = None if kept is None else [kept.pages_N.tolist(), kept.offsets_N.tolist()]
        return self._link.ask(
            {"what": what, "after": self._num_launched, "slot": slot, "kept": frames}, buffers
        )

    def tell(self, message: Mapping[str, Any], buffers: Mapping[str, memoryview] | None = None) -> None:
        """Send a request without an answer, in order after all launched flights. Raises GroupLost."""
        self._link.tell({"after": self._num_launched, **message}, buffers)
