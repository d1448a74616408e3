"""A lane that asks for what is not its own, sends nonsense or is gone ends alone."""

from __future__ import annotations

import select
import socket
import struct
import threading
from collections.abc import Callable
from contextlib import suppress
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from gpu_worker.engine.phrases.tree_memory import NO_TREE, TreeMemory
from gpu_worker.engine.steps import UNKNOWN_END, Field, KeptFrames
from gpu_worker.lanes import wire
from gpu_worker.lanes.bell import Bell
from gpu_worker.lanes.group import share_of
from gpu_worker.lanes.link import GroupLink, GroupLost
from gpu_worker.lanes.port import MAX_ANSWERS, LanePort, UseTree
from gpu_worker.lanes.segment import FlightSizes, LaneArea, SharedMemory
from tests.device.lane_recorder import (
    Recorder,
    launch,
    recorded_lanes,
    recorder,
    rows_of,
    table_of,
    tree_of,
    turn_until,
)
from tests.device.lane_stack import LaneStack
from tests.waiting import wait_until

WRONG_ROWS: list[tuple[str, Callable[[NDArray[np.int32], NDArray[np.int32]], object]]] = [
    ("another lane's slot", lambda rows, _: rows.__setitem__((Field.SLOT, 0), 4)),
    ("a slot below 0", lambda rows, _: rows.__setitem__((Field.SLOT, 0), -1)),
    ("a slot twice", lambda rows, _: rows.__setitem__(Field.SLOT, 1)),
    ("too many frames", lambda rows, _: rows.__setitem__((Field.FRAMES, 0), 5)),
    ("frames below 0", lambda rows, _: rows.__setitem__((Field.FRAMES, 0), -1)),
    ("a start below 0", lambda rows, _: rows.__setitem__((Field.START, 0), -1)),
    ("a start beyond all ends", lambda rows, _: rows.__setitem__((Field.START, 0), 1 << 30)),
    ("an end below 0", lambda rows, _: rows.__setitem__((Field.TOTAL, 0), -1)),
    ("an end beyond all ends", lambda rows, _: rows.__setitem__((Field.TOTAL, 0), UNKNOWN_END + 1)),
    ("a third type of samples", lambda rows, _: rows.__setitem__((Field.FLOAT, 1), 2)),
    ("more heard than a chunk has", lambda rows, _: rows.__setitem__((Field.HEARD, 0), 2_560 + 2 * 160 + 1)),
    ("less heard than nothing", lambda rows, _: rows.__setitem__((Field.HEARD, 0), -1)),
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
    [
        *((4, [0], [0]), (-1, [0], [0]), (0, [10], [0]), (0, [-1], [0]), (0, [0], [4]), (0, [0, 1], [0])),
        (0, [[0]], [[0]]),
    ],
)
def test_a_lane_that_asks_for_what_is_not_its_own_ends(
    stack: LaneStack, slot: int, pages: list[Any], offsets: list[Any]
) -> None:
    export = stack.lanes[0].export(slot, KeptFrames(np.array(pages), np.array(offsets)))
    with pytest.raises(GroupLost):
        export()
    assert stack.ports[0].gone
    stack.server.turn()
    assert recorder(stack).told == []


@pytest.mark.parametrize("num_rows", [-1, 0, 5, 1 << 40])
def test_a_lane_with_a_number_of_rows_that_cannot_be_ends(stack: LaneStack, num_rows: int) -> None:
    launch(stack.lanes[0], [0])
    stack.lanes[0]._area.flight(0)._words[0] = num_rows
    stack.server.turn()
    assert stack.ports[0].gone
    assert recorder(stack).told == []


def test_a_lane_that_counts_more_flights_than_there_are_buffers_ends(stack: LaneStack) -> None:
    """It would have the device do the same rows again and again."""
    launch(stack.lanes[0], [0])
    stack.lanes[0]._area.launched = 3
    stack.server.turn()
    assert stack.ports[0].gone
    assert recorder(stack).told == []


@pytest.mark.parametrize("count", [-(1 << 62), (1 << 63) - 1])
def test_a_lane_that_writes_the_counts_of_its_group_hurts_itself_alone(stack: LaneStack, count: int) -> None:
    launch(stack.lanes[0], [0])
    fine = launch(stack.lanes[1], [0])
    stack.lanes[0]._area.done = stack.lanes[0]._area.taken = count
    stack.server.turn()
    stack.server.turn()
    assert recorder(stack).steps_told() == [[0, 4]]
    assert stack.lanes[0]._area.done == 1
    assert stack.lanes[1].wait(fine).symbols_BK[0, 0] == 4


def port_of_a_mute_lane() -> tuple[LanePort, socket.socket]:
    """A port that listens, and the end of its lane, which nobody reads."""
    ours, theirs = socket.socketpair()
    share = share_of(Recorder(), 0, 2)
    sizes = FlightSizes.of(share.shape)
    memory = SharedMemory.create("lane", LaneArea.num_bytes(sizes))
    port = LanePort(share, LaneArea(sizes, memory), ours, Bell.create(), lambda: None)
    memory.close_fd()
    port.start()
    return port, theirs


def test_a_lane_that_asks_and_never_reads_ends() -> None:
    port, theirs = port_of_a_mute_lane()
    state = memoryview(bytes(8 << 20))  # more than the socket holds
    port.send_export(0, lambda: {"state": state})
    assert select.select([theirs], [], [], 10)[0]  # it is on its way
    for number in range(1, MAX_ANSWERS + 1):
        port.say(number)
    held = port._answers.qsize()
    assert (held, port.gone) == (MAX_ANSWERS, False)
    for number in range(10):
        port.say(number)
    assert (port._answers.qsize() - held <= 2, port.gone) == (True, True), "no more but the ends"
    for thread in (port._sender, port._listener):
        thread.join(60)
        assert not thread.is_alive()
    theirs.close()


def test_the_socket_of_a_lane_is_not_closed_while_an_answer_is_sent(monkeypatch: pytest.MonkeyPatch) -> None:
    """A call with its descriptor's number could meet another file."""
    port, theirs = port_of_a_mute_lane()
    inside, go_on, open_then = threading.Event(), threading.Event(), []

    def late_send(link: socket.socket, *_: object) -> None:
        inside.set()
        go_on.wait(60)
        open_then.append(link.fileno() >= 0)

    monkeypatch.setattr("gpu_worker.lanes.port.send", late_send)
    port.say(0)
    assert inside.wait(60)
    woken = threading.Event()
    port._wake = woken.set
    theirs.close()
    assert woken.wait(60), "the steps' thread hears of it at once"
    port._listener.join(0.2)  # it would close the socket by then
    go_on.set()
    port._listener.join(60)
    assert (open_then, port._link.fileno()) == ([True], -1)


def test_the_socket_to_a_group_is_not_closed_while_a_request_is_sent(monkeypatch: pytest.MonkeyPatch) -> None:
    ours, theirs = socket.socketpair()
    link, told, open_then = GroupLink(ours, Bell.create()), threading.Event(), []

    def late_send(socket_: socket.socket, *_: object) -> None:
        theirs.close()
        assert told.wait(60), "the lane hears of it at once"
        open_then.append(socket_.fileno() >= 0)
        raise BrokenPipeError

    monkeypatch.setattr("gpu_worker.lanes.link.send", late_send)
    link.start(lambda _: told.set())
    with pytest.raises(GroupLost):
        link.tell({})
    wait_until(lambda: ours.fileno() == -1, 60)
    assert open_then == [True]


def test_a_lane_that_goes_on_asking_holds_no_other_up(stack: LaneStack) -> None:
    steps, asked = recorder(stack), []

    class Insatiable:
        """Has one more request whenever one is served."""

        def use(self, slot: int, *_: object, **__: object) -> None:
            asked.append(slot)
            assert len(asked) < 1_000, "the turn does not end"
            port = stack.ports[0]
            port._requests.append((0, 0, UseTree(0, NO_TREE, 0, anew=True)))

    steps.trees = Insatiable()  # type: ignore[assignment]
    stack.lanes[0].trees.use(0, NO_TREE, 0, anew=True)
    wait_until(lambda: stack.ports[0].num_waiting == 1)
    fine = launch(stack.lanes[1], [0])
    turn_until(stack, lambda: steps.told[-1:] == [("wait", [4])])
    assert stack.lanes[1].wait(fine).num_symbols_B.tolist() == [1]
    assert 1 <= len(asked) <= 4


def test_a_lane_that_asks_for_more_than_is_kept_ends(monkeypatch: pytest.MonkeyPatch) -> None:
    """Its requests come behind a flight that it never launches."""
    monkeypatch.setattr("gpu_worker.lanes.port._STATE_BYTES", 1 << 20)
    port, theirs = port_of_a_mute_lane()
    state = memoryview(bytes(400_000))
    request = {"what": "load", "number": 0, "after": 1, "slot": 0, "kept": None}
    for number in range(2):
        wire.send(theirs, request, {"state": state})
        wait_until(lambda number=number: len(port._requests) == number + 1)  # type: ignore[misc]
    assert not port.gone
    assert port.next_request() is None
    wire.send(theirs, request, {"state": state})
    wait_until(lambda: port.gone)
    theirs.close()


def test_a_lane_whose_requests_are_served_may_ask_on(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("gpu_worker.lanes.port._STATE_BYTES", 1 << 20)
    port, theirs = port_of_a_mute_lane()
    request = {"what": "load", "number": 0, "after": 0, "slot": 0, "kept": None}
    for _ in range(8):
        wire.send(theirs, request, {"state": memoryview(bytes(900_000))})
        wait_until(lambda: port.next_request() is not None)
    assert not port.gone
    port.close()
    theirs.close()


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


def test_sizes_that_are_no_mapping_are_a_fault_of_the_wire() -> None:
    ours, theirs = socket.socketpair()
    said = b'{"message":{},"sizes":[]}'
    theirs.sendall(struct.pack("<II", len(said), 0) + said)
    with pytest.raises(wire.WireFault):
        wire.receive(ours)
    ours.close()
    theirs.close()


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
