"""The group's steps: rows are merged, requests keep their place, and a lane that is wrong ends alone."""

from __future__ import annotations

import select
import socket
import struct
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from common.errors import SettingsError
from gpu_worker.boosting.tree import PhraseTree
from gpu_worker.engine.engine import SpeechEngine
from gpu_worker.engine.interface import EngineStats
from gpu_worker.engine.phrases.tree_memory import NO_TREE, NO_TREES, TreeMemory
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
from gpu_worker.lanes import wire
from gpu_worker.lanes.bell import Bell
from gpu_worker.lanes.group import share_of
from gpu_worker.lanes.link import GroupLost
from gpu_worker.lanes.port import LanePort
from gpu_worker.lanes.segment import FlightSizes, LaneArea, SharedMemory
from gpu_worker.lanes.steps import LaneSteps
from gpu_worker.steps.null import Letters, NullEngine
from tests.engine_contract import run
from tests.lane_stack import LaneStack, lane_stack
from tests.oracle.models import JFK, speech
from tests.waiting import wait_until

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


class _Recorded:
    def __init__(self) -> None:
        self.steps = Recorder()
        self.steps.trees = RecordedTrees(self.steps.told)


@pytest.fixture
def stack() -> Iterator[LaneStack]:
    """Two lanes of four slots each, whose steps run where the test says `turn`."""
    stack = LaneStack(lambda _: _Recorded(), 2, num_tokens=10)  # type: ignore[arg-type, return-value]
    yield stack
    for port in stack.ports:
        port.close()


def recorder(stack: LaneStack) -> Recorder:
    assert isinstance(stack.device, Recorder)
    return stack.device


def rows_of(slots: Sequence[int], frames: int = 2) -> NDArray[np.int32]:
    rows = np.zeros((len(Field), len(slots)), dtype=np.int32)
    rows[Field.SLOT] = slots
    rows[Field.FRAMES] = frames
    rows[Field.TOTAL] = UNKNOWN_END
    return rows


def table_of(slots: Sequence[int], page: int = 0) -> NDArray[np.int32]:
    return np.full((len(slots), 3), page, dtype=np.int32)


def launch(lane: LaneSteps, slots: Sequence[int], frames: int = 2) -> Flight:
    return lane.launch(rows_of(slots, frames), table_of(slots))


def turn_until(stack: LaneStack, is_so: Callable[[], bool]) -> None:
    """Turns as a group takes them; requests come through a socket, some time after they were sent."""
    for _ in range(200):
        if is_so():
            return
        stack.server.turn()
    raise AssertionError(f"it never came: {recorder(stack).told}")


def test_rows_of_lanes_are_one_step_and_each_lane_hears_its_own(stack: LaneStack) -> None:
    first, second = launch(stack.lanes[0], [0, 3]), launch(stack.lanes[1], [1, 2, 3])
    stack.server.turn()
    stack.server.turn()
    assert recorder(stack).steps_told() == [[0, 3, 5, 6, 7]]
    found = stack.lanes[1].wait(second)
    assert found.num_symbols_B.tolist() == [1, 1, 1]
    assert found.symbols_BK[:, 0].tolist() == [5, 6, 7]
    assert found.speech_BW[:, 0].tolist() == [5, 6, 7]
    assert found.confidences_BK.tolist() == [[0.5] * 4] * 3
    assert stack.lanes[0].wait(first).symbols_BK[:, 0].tolist() == [0, 3]


def test_pages_are_the_lanes_own_and_none_stays_none(stack: LaneStack) -> None:
    lane = stack.lanes[1]
    assert lane.shape.pages.num_pages == 10
    table = np.array([[0, 9, 10]], dtype=np.int32)
    lane.launch(rows_of([0]), table)
    stack.server.turn()
    assert ("pages", [[10, 19, 20]]) in recorder(stack).told


def test_the_time_of_a_step_is_shared_by_its_rows(stack: LaneStack) -> None:
    flights = [launch(lane, slots) for lane, slots in zip(stack.lanes, ([0], [0, 1, 2]), strict=True)]
    stack.server.turn()
    stack.server.turn()
    for lane, flight in zip(stack.lanes, flights, strict=True):
        lane.wait(flight)
    assert [lane.stats.encode.busy_s for lane in stack.lanes] == [0.25, 0.75]
    assert [lane.stats.encode.calls for lane in stack.lanes] == [1, 1]


def test_a_step_has_no_more_rows_than_the_device_takes(stack: LaneStack) -> None:
    launch(stack.lanes[0], [0, 1, 2, 3])
    launch(stack.lanes[1], [0, 1, 2])
    stack.server.turn()
    assert recorder(stack).steps_told() == [[0, 1, 2, 3]]
    turn_until(stack, lambda: len(recorder(stack).steps_told()) == 2)
    assert recorder(stack).steps_told()[1] == [4, 5, 6]


def test_rows_of_a_step_have_equally_many_chunks(stack: LaneStack) -> None:
    launch(stack.lanes[0], [0], frames=4)
    launch(stack.lanes[1], [0], frames=2)
    turn_until(stack, lambda: len(recorder(stack).steps_told()) == 2)
    assert recorder(stack).steps_told() == [[0], [4]]


def test_the_next_step_is_launched_ahead_where_it_is_worth_it(stack: LaneStack) -> None:
    launch(stack.lanes[0], [0, 1])
    stack.server.turn()
    launch(stack.lanes[1], [2])  # half as many rows as are under way
    stack.server.turn()
    assert recorder(stack).told[-2:] == [("launch", [6]), ("pages", [[10, 10, 10]])]


def test_a_step_of_a_few_rows_waits_for_more(stack: LaneStack) -> None:
    launch(stack.lanes[0], [0, 1, 2])
    stack.server.turn()
    launch(stack.lanes[1], [2])
    stack.server.turn()
    assert recorder(stack).told[-1] == ("wait", [0, 1, 2])


def test_slots_begin_anew_before_their_rows(stack: LaneStack) -> None:
    stack.lanes[1].reset([2, 0], [0, 0])
    launch(stack.lanes[1], [2])
    stack.server.turn()
    assert [what for what in recorder(stack).told if what[0] != "pages"] == [
        ("reset", [6, 4]),
        ("launch", [6]),
    ]


def test_what_is_asked_keeps_its_place_between_flights(stack: LaneStack) -> None:
    lane = stack.lanes[1]
    launch(lane, [0])
    export = lane.export(0, KeptFrames(np.array([1, 2]), np.array([0, 3])))
    launch(lane, [0])
    turn_until(stack, lambda: len(recorder(stack).steps_told()) == 2)
    order = [what for what in recorder(stack).told if what[0] in ("launch", "export")]
    assert order == [("launch", [4]), ("export", (4, [11, 12])), ("launch", [4])]
    assert bytes(export()["slot"]) == bytes([4])


def test_answers_never_mix_and_nobody_waits_for_a_lane_that_does_not_read() -> None:
    ours, theirs = socket.socketpair()
    share = share_of(Recorder(), 0, 2)
    sizes = FlightSizes.of(share.shape)
    memory = SharedMemory.create("lane", LaneArea.num_bytes(sizes))
    port = LanePort(share, LaneArea(sizes, memory), ours, Bell.create(), lambda: None)
    port.start()
    state = memoryview(bytes(range(256)) * 32_768)  # more than the socket holds
    port.send_export(0, lambda: {"state": state})
    assert select.select([theirs], [], [], 10)[0]  # it is on its way
    port.say(1)
    port.send_export(2, lambda: {"state": state})
    for number in range(3):
        received = wire.receive(theirs)
        assert received is not None
        assert received[0] == {"number": number}
        assert received[1] == ({} if number == 1 else {"state": state})
    port.close()
    theirs.close()
    memory.close_fd()


def test_slots_are_under_way_while_the_group_has_them_in_hand(stack: LaneStack) -> None:
    lane = stack.lanes[1]
    assert lane.slots_under_way() == set()
    first = launch(lane, [0, 3])
    assert lane.slots_under_way() == set(), "the group has not begun with them"
    stack.server.turn()
    launch(lane, [1])
    assert lane.slots_under_way() == {0, 3}
    turn_until(stack, lambda: lane.is_over(first))
    turn_until(stack, lambda: lane.slots_under_way() == {1})
    stack.ports[1].close()
    with pytest.raises(GroupLost):
        lane.load(2, None, {"tail": memoryview(b"abc")})
    assert lane.slots_under_way() == {1, 2}


def test_slots_are_under_way_where_their_launch_is_what_fails(stack: LaneStack, monkeypatch: Any) -> None:
    def fails(*_: object) -> None:
        raise RuntimeError("no launch")

    monkeypatch.setattr(stack.device, "launch", fails)
    launch(stack.lanes[0], [2])
    launch(stack.lanes[1], [0, 3])
    with pytest.raises(RuntimeError, match="no launch"):
        stack.server.turn()
    assert [lane.slots_under_way() for lane in stack.lanes] == [{2}, {0, 3}]


def test_a_lane_knows_whether_it_waits_for_its_group(stack: LaneStack) -> None:
    lane = stack.lanes[0]
    flight = launch(lane, [0])
    assert not lane.waits_for_group
    waiting = threading.Thread(target=lane.wait, args=(flight,))
    waiting.start()
    wait_until(lambda: lane.waits_for_group, what="the wait")
    turn_until(stack, lambda: lane.is_over(flight))
    waiting.join(10)
    assert not waiting.is_alive()
    assert not lane.waits_for_group


def test_lanes_without_a_page_each_are_refused() -> None:
    steps = Recorder(replace(SHAPE, pages=PageShape(num_pages=2, page_frames=4, ring_pages=3, left_frames=8)))
    assert share_of(steps, 1, 2).shape.pages.num_pages == 1
    with pytest.raises(SettingsError, match="--lanes got 3, but takes no more than there are pages"):
        share_of(steps, 0, 3)


def test_a_state_that_does_not_fit_is_told_as_it_was(stack: LaneStack) -> None:
    for fault, expected in ((None, None), (KeyError("tail"), KeyError), (ValueError("long"), ValueError)):
        recorder(stack).fault = fault
        raised: list[BaseException | None] = []

        def load(raised: list[BaseException | None] = raised) -> None:
            try:
                stack.lanes[0].load(3, None, {"tail": memoryview(b"abc"), "none": memoryview(b"")})
            except (KeyError, ValueError) as error:
                raised.append(error)
            else:
                raised.append(None)

        thread = threading.Thread(target=load)
        thread.start()
        turn_until(stack, lambda raised=raised: bool(raised))  # type: ignore[misc]
        thread.join()
        assert (raised[0] is None) == (expected is None)
        if expected is not None:
            assert isinstance(raised[0], expected)
            assert raised[0].args == fault.args  # type: ignore[union-attr]
    assert recorder(stack).told[0] == ("load", (3, {"tail": b"abc", "none": b""}))


WRONG_ROWS: list[tuple[str, Callable[[NDArray[np.int32], NDArray[np.int32]], object]]] = [
    ("another lane's slot", lambda rows, _: rows.__setitem__((Field.SLOT, 0), 4)),
    ("a slot below 0", lambda rows, _: rows.__setitem__((Field.SLOT, 0), -1)),
    ("a slot twice", lambda rows, _: rows.__setitem__(Field.SLOT, 1)),
    ("too many frames", lambda rows, _: rows.__setitem__((Field.FRAMES, 0), 5)),
    ("frames below 0", lambda rows, _: rows.__setitem__((Field.FRAMES, 0), -1)),
    ("a start below 0", lambda rows, _: rows.__setitem__((Field.START, 0), -1)),
    ("too much heard", lambda rows, _: rows.__setitem__((Field.HEARD, 0), 1 << 20)),
    ("another lane's page", lambda _, table: table.__setitem__((0, 0), 11)),
    ("a page below 0", lambda _, table: table.__setitem__((1, 2), -1)),
]


@pytest.mark.parametrize(("name", "spoil"), WRONG_ROWS, ids=[name for name, _ in WRONG_ROWS])
def test_a_lane_that_launches_what_is_not_its_own_ends_alone(
    stack: LaneStack, name: str, spoil: Callable[[NDArray[np.int32], NDArray[np.int32]], object]
) -> None:
    rows, table = rows_of([0, 1]), table_of([0, 1])
    spoil(rows, table)
    lost = stack.lanes[0].launch(rows, table)
    fine = launch(stack.lanes[1], [0])
    turn_until(stack, lambda: bool(recorder(stack).steps_told()) and stack.ports[0].gone)
    stack.server.turn()
    assert recorder(stack).steps_told() == [[4]]
    assert stack.lanes[1].wait(fine).num_symbols_B.tolist() == [1]
    with pytest.raises(GroupLost):
        stack.lanes[0].wait(lost)


def test_a_lane_that_resets_another_ones_slot_ends(stack: LaneStack) -> None:
    stack.lanes[0].reset([5], [0])
    launch(stack.lanes[0], [0])
    stack.server.turn()
    assert stack.ports[0].gone
    assert recorder(stack).told == []


@pytest.mark.parametrize(
    ("slot", "pages", "offsets"),
    [(4, [0], [0]), (-1, [0], [0]), (0, [10], [0]), (0, [-1], [0]), (0, [0], [4]), (0, [0, 1], [0])],
)
def test_a_lane_that_asks_for_what_is_not_its_own_ends(
    stack: LaneStack, slot: int, pages: list[int], offsets: list[int]
) -> None:
    export = stack.lanes[0].export(slot, KeptFrames(np.array(pages), np.array(offsets)))
    with pytest.raises(GroupLost):
        export()
    assert stack.ports[0].gone
    stack.server.turn()
    assert recorder(stack).told == []


def tree_of(*tokens: int) -> PhraseTree:
    return PhraseTree([(tokens, 1.0)], 10)


def test_trees_stand_in_the_lanes_part_of_the_arena_and_keep_their_place(stack: LaneStack) -> None:
    lane, tree = stack.lanes[1], tree_of(1, 2)
    assert lane.trees.num_words == 200
    first = launch(lane, [0])
    turn_until(stack, lambda: ("wait", [4]) in recorder(stack).told)
    lane.wait(first)
    lane.trees.put(100, lane.trees.prepare(tree))
    lane.trees.use(0, 100, tree.num_nodes, anew=True)
    launch(lane, [0])
    lane.trees.use(0, NO_TREE, 0, anew=True)
    lane.trees.drop(100)
    launch(lane, [0])
    turn_until(stack, lambda: len(recorder(stack).steps_told()) == 3)
    kinds = ("launch", "put", "use", "drop")
    assert [what for what in recorder(stack).told if what[0] in kinds] == [
        ("launch", [4]),
        ("put", (300, tree.words.tolist())),
        ("use", (4, 300, tree.num_nodes, True)),
        ("launch", [4]),
        ("use", (4, NO_TREE, 0, True)),
        ("drop", 300),
        ("launch", [4]),
    ]


def test_a_lane_may_change_the_phrases_of_all_its_streams_while_a_step_runs() -> None:
    num_slots = 3_000
    recorded = _Recorded()
    recorded.steps.shape = replace(SHAPE, num_slots=2 * num_slots)
    stack = LaneStack(lambda _: recorded, 2, num_tokens=10)  # type: ignore[arg-type, return-value]
    lane = stack.lanes[0]
    for slot in range(num_slots):
        lane.trees.use(slot, NO_TREE, 0, anew=True)
        lane.trees.use(slot, NO_TREE, 0, anew=True)
    launch(lane, [0])
    turn_until(stack, lambda: recorder(stack).steps_told() == [[0]])
    assert sum(kind == "use" for kind, _ in recorder(stack).told) == 2 * num_slots
    for port in stack.ports:
        port.close()


def test_the_trees_of_a_lane_that_is_gone_are_let_go(stack: LaneStack) -> None:
    lane, tree = stack.lanes[1], tree_of(1, 2)
    lane.trees.put(0, lane.trees.prepare(tree))
    lane.trees.use(3, 0, tree.num_nodes, anew=True)
    turn_until(stack, lambda: ("use", (7, 200, tree.num_nodes, True)) in recorder(stack).told)
    stack.server.remove(stack.ports[1])
    turn_until(stack, lambda: ("drop", 200) in recorder(stack).told)
    assert ("use", (7, NO_TREE, 0, True)) in recorder(stack).told


def wrong_words() -> list[NDArray[np.int32]]:
    """Words of a tree, each with one that leads out of it."""
    spoiled = []
    for at, value in ((0, -3), (0, 5), (1, 99), (2, 2), (6, 1), (12, 10), (14, 3), (14, -1)):
        words = tree_of(1, 2).words.copy()
        words[at] = value
        spoiled.append(words)
    return [*spoiled, tree_of(1).words[:-1], np.zeros(0, dtype=np.int32)]


@pytest.mark.parametrize("words", wrong_words())
def test_a_lane_whose_tree_leads_nowhere_ends(stack: LaneStack, words: NDArray[np.int32]) -> None:
    with suppress(GroupLost):  # the group ends the lane as soon as it has read enough
        stack.lanes[0].tell({"what": "put", "at": 0}, {"words": memoryview(words.tobytes())})
    turn_until(stack, lambda: stack.ports[0].gone)
    assert recorder(stack).told == []


@pytest.mark.parametrize(
    "wrong",
    [
        lambda trees: trees.put(190, tree_of(1, 2)),
        lambda trees: trees.put(-1, tree_of(1, 2)),
        lambda trees: (trees.put(0, tree_of(1, 2)), trees.put(4, tree_of(1, 2))),
        lambda trees: trees.drop(5),
        lambda trees: trees.use(0, 5, 1, anew=True),
        lambda trees: trees.use(4, NO_TREE, 0, anew=True),
    ],
)
def test_a_lane_that_is_wrong_about_its_trees_ends(
    stack: LaneStack, wrong: Callable[[TreeMemory], object]
) -> None:
    with suppress(GroupLost):  # as above
        wrong(stack.lanes[0].trees)
    turn_until(stack, lambda: stack.ports[0].gone)
    fine = launch(stack.lanes[1], [0])
    turn_until(stack, lambda: recorder(stack).told[-1:] == [("wait", [4])])
    assert stack.lanes[1].wait(fine).num_symbols_B.tolist() == [1]


def test_a_lane_that_is_gone_is_left_out_with_what_it_has_launched(stack: LaneStack) -> None:
    launch(stack.lanes[0], [0])
    stack.server.turn()  # under way
    launch(stack.lanes[0], [1])
    launch(stack.lanes[1], [1])
    stack.server.remove(stack.ports[0])
    turn_until(stack, lambda: recorder(stack).told[-1] == ("wait", [5]))
    assert recorder(stack).steps_told() == [[0], [5]]


def test_who_waits_for_a_group_that_goes_is_told(stack: LaneStack) -> None:
    flight = launch(stack.lanes[0], [0])
    told: list[BaseException] = []

    def wait() -> None:
        try:
            stack.lanes[0].wait(flight)
        except GroupLost as error:
            told.append(error)

    thread = threading.Thread(target=wait)
    thread.start()
    stack.ports[0].close()
    thread.join(10)
    assert len(told) == 1
    with pytest.raises(GroupLost):
        stack.lanes[0].export(0, None)


@settings(max_examples=60, deadline=None)
@given(st.binary(max_size=200), st.booleans())
def test_whatever_a_lane_sends_ends_that_lane_at_most(data: bytes, framed: bool) -> None:
    stack = LaneStack(lambda _: _Recorded(), 2)  # type: ignore[arg-type, return-value]
    link: socket.socket = stack.lanes[0]._link._link
    if framed:
        data = struct.pack("<II", len(data), 0) + data
    with suppress(OSError):  # the group ends the lane as soon as it has read enough
        link.sendall(data)
        link.shutdown(socket.SHUT_WR)
    flight = launch(stack.lanes[1], [0])
    turn_until(stack, lambda: recorder(stack).told != [] and recorder(stack).told[-1][0] == "wait")
    assert stack.lanes[1].wait(flight).symbols_BK[0, 0] == 4
    for port in stack.ports:
        port.close()


def test_lanes_beside_each_other_say_what_an_engine_says_alone() -> None:
    audio = {number: speech(JFK)[number * 4_000 : number * 4_000 + 60_000] for number in range(1, 5)}
    alone = run(NullEngine(8, turn_detection=True), audio)
    with lane_stack(lambda rings: NullEngine(8, turn_detection=True, rings=rings)) as stack:
        found: list[dict[int, list[object]]] = [{}, {}]

        def say(lane: int) -> None:
            found[lane] = run(SpeechEngine(stack.lanes[lane], Letters()), audio, seed=lane)  # type: ignore[assignment]

        threads = [threading.Thread(target=say, args=(lane,)) for lane in (0, 1)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(60)
    assert found == [alone, alone]
