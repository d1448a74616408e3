"""Lanes over steps that write down what they are told."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from gpu_worker.boosting.tree import PhraseTree
from gpu_worker.engine.interface import EngineStats
from gpu_worker.engine.phrases.tree_memory import NO_TREES, TreeMemory
from gpu_worker.engine.slots.clock import ChunkClock
from gpu_worker.engine.steps import (
    UNKNOWN_END,
    Export,
    Field,
    Flight,
    KeptFrames,
    PageShape,
    RingMemory,
    StepFindings,
    StepShape,
)
from gpu_worker.lanes.steps import LaneSteps
from tests.device.lane_stack import LaneStack

SHAPE = StepShape(
    clock=ChunkClock(160, 200, 8, 2),
    num_slots=8,
    max_rows=6,
    max_chunks=2,
    frame_symbols=3,
    pages=PageShape(num_pages=20, page_frames=4, ring_pages=3, left_frames=8),
    overlaps=True,
    hears=True,
    fingerprint="recorder",
)


@dataclass
class Recorder:
    """Steps that write down what they are told and say something about each row: its slot."""

    shape: StepShape = SHAPE
    stats: EngineStats = field(default_factory=EngineStats)
    rings: RingMemory = field(default_factory=lambda: RingMemory.allocate(SHAPE.num_slots, 4 * 2_560))
    told: list[tuple[str, object]] = field(default_factory=list)
    fault: Exception | None = None
    trees: TreeMemory = NO_TREES

    def reset(self, slots: Sequence[int], prompts: Sequence[int]) -> None:
        self.told.append(("reset", list(slots)))

    def launch(self, rows_FB: NDArray[np.int32], table_BM: NDArray[np.int32]) -> Flight:
        self.told.append(("launch", rows_FB[Field.SLOT].tolist()))
        self.told.append(("pages", table_BM.tolist()))
        self.stats.encode.calls += 1
        self.stats.encode.busy_s += 1.0
        return Flight(rows_FB.shape[1], rows_FB[Field.SLOT].copy())

    def is_over(self, flight: Flight) -> bool:
        return True

    def wait(self, flight: Flight) -> StepFindings:
        slots = flight.token
        assert isinstance(slots, np.ndarray)
        self.told.append(("wait", slots.tolist()))
        count = len(slots)
        return StepFindings(
            np.ones(count, dtype=np.int32),
            np.repeat(slots[:, None], 4, axis=1).astype(np.int32),
            np.zeros((count, 4), dtype=np.int32),
            np.full((count, 4), 0.5, dtype=np.float32),
            np.repeat(slots[:, None], 3, axis=1).astype(np.float32),
        )

    def export(self, slot: int, kept: KeptFrames | None) -> Export:
        self.told.append(("export", (slot, None if kept is None else kept.pages_N.tolist())))
        return lambda: {"slot": memoryview(bytes([slot]))}

    def load(self, slot: int, kept: KeptFrames | None, state: Mapping[str, memoryview]) -> None:
        self.told.append(("load", (slot, {name: bytes(data) for name, data in state.items()})))
        if self.fault is not None:
            raise self.fault

    def steps_told(self) -> list[object]:
        return [what for kind, what in self.told if kind == "launch"]


@dataclass
class RecordedTrees:
    """An arena that writes down what it is told."""

    told: list[tuple[str, object]]
    num_words: int = 400

    def prepare(self, tree: PhraseTree) -> object:
        return tree.words.tolist()

    def put(self, at: int, prepared: object) -> None:
        self.told.append(("put", (at, prepared)))

    def drop(self, at: int) -> None:
        self.told.append(("drop", at))

    def use(self, slot: int, at: int, num_nodes: int, *, anew: bool) -> None:
        self.told.append(("use", (slot, at, num_nodes, anew)))

    def use_for_all(self, at: int) -> None:
        raise AssertionError("no lane has phrases for all")


class _RecordedEngine:
    """As much of an engine as `LaneStack` asks for."""

    def __init__(self, steps: Recorder) -> None:
        self.steps = steps


def recorded_lanes(shape: StepShape = SHAPE) -> LaneStack:
    """Two lanes, each with half of the slots, whose steps run where the test says `turn`."""
    steps = Recorder(shape)
    steps.trees = RecordedTrees(steps.told)
    return LaneStack(lambda _: _RecordedEngine(steps), 2, num_tokens=10)  # type: ignore[arg-type, return-value]


def recorder(stack: LaneStack) -> Recorder:
    """What the lanes' steps were told."""
    assert isinstance(stack.device, Recorder)
    return stack.device


def rows_of(slots: Sequence[int], frames: int = 2) -> NDArray[np.int32]:
    """Rows of a step, a slot each: int32 [fields, slots]."""
    rows = np.zeros((len(Field), len(slots)), dtype=np.int32)
    rows[Field.SLOT] = slots
    rows[Field.FRAMES] = frames
    rows[Field.TOTAL] = UNKNOWN_END
    return rows


def table_of(slots: Sequence[int], page: int = 0) -> NDArray[np.int32]:
    """A table of pages for those rows, the same page everywhere: int32 [slots, 3]."""
    return np.full((len(slots), 3), page, dtype=np.int32)


def launch(lane: LaneSteps, slots: Sequence[int], frames: int = 2) -> Flight:
    """Have a lane launch a row for each of its slots."""
    return lane.launch(rows_of(slots, frames), table_of(slots))


def tree_of(*tokens: int) -> PhraseTree:
    """A tree of one phrase."""
    return PhraseTree([(tokens, 1.0)], 10)


def turn_until(stack: LaneStack, is_so: Callable[[], bool]) -> None:
    """Turn as a group does; requests come through a socket, some time after they were sent."""
    for _ in range(200):
        if is_so():
            return
        stack.server.turn()
    raise AssertionError(f"it never came: {recorder(stack).told}")
