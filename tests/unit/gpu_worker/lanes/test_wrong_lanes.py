"""A lane that asks for what is not its own, sends nonsense or is gone ends alone."""

from __future__ import annotations

import socket
import struct
from collections.abc import Callable
from contextlib import suppress

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from gpu_worker.engine.phrases.tree_memory import NO_TREE, TreeMemory
from gpu_worker.engine.steps import Field, KeptFrames
from gpu_worker.lanes.link import GroupLost
from tests.lane_recorder import launch, recorded_lanes, recorder, rows_of, table_of, tree_of, turn_until
from tests.lane_stack import LaneStack

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


def wrong_words() -> list[NDArray[np.int32]]:
    """Words of a tree, each with one that leads out of it."""
    spoiled = []
    # 10 tokens and 3 nodes: the root's table, with its arc at 11; the nodes from 20 on; the other arc at 32.
    root_table = ((11, 3), (11, -1))
    root = ((20, -3), (20, 31), (20, 28), (20, 99), (21, 1), (21, -1), (22, 1))
    node = ((24, 31), (24, 33), (25, 2), (25, -1), (26, 1), (26, -1))
    arc = ((32, 10), (32, -1), (34, 3), (34, -1))
    for at, value in (*root_table, *root, *node, *arc):
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


@settings(max_examples=60, deadline=None)
@given(st.binary(max_size=200), st.booleans())
def test_whatever_a_lane_sends_ends_that_lane_at_most(data: bytes, framed: bool) -> None:
    stack = recorded_lanes()
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
