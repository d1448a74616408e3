"""The group's steps: rows are merged, each lane hears its own, and requests keep their place."""

from __future__ import annotations

import select
import socket
import threading
from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from common.errors import SettingsError
from gpu_worker.engine.engine import SpeechEngine
from gpu_worker.engine.steps import NO_PAGES, KeptFrames, PageShape
from gpu_worker.lanes import wire
from gpu_worker.lanes.bell import Bell
from gpu_worker.lanes.group import share_of
from gpu_worker.lanes.link import GroupLost
from gpu_worker.lanes.port import LanePort
from gpu_worker.lanes.segment import FlightSizes, LaneArea, SharedMemory
from gpu_worker.steps.null import Letters, NullEngine
from tests.contracts.engine_contract import run
from tests.device.lane_recorder import SHAPE, Recorder, launch, recorder, rows_of, turn_until
from tests.device.lane_stack import LaneStack, lane_stack
from tests.oracle.models import JFK, speech
from tests.waiting import wait_until


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
    waiting.join(60)
    assert not waiting.is_alive()
    assert not lane.waits_for_group


def test_lanes_without_the_pages_of_one_stream_each_are_refused() -> None:
    """Every stream of theirs would end in some seconds."""
    steps = Recorder(replace(SHAPE, pages=PageShape(num_pages=8, page_frames=4, ring_pages=3, left_frames=8)))
    assert share_of(steps, 1, 2).shape.pages.num_pages == 4
    with pytest.raises(SettingsError, match="--lanes got 3, but takes no more than the 8 pages"):
        share_of(steps, 0, 3)
    assert share_of(Recorder(replace(SHAPE, pages=NO_PAGES)), 0, 3).shape.pages.ring_pages == 0


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
    thread.join(60)
    assert len(told) == 1
    with pytest.raises(GroupLost):
        stack.lanes[0].export(0, None)


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
