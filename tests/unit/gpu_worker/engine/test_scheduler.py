"""Who goes next, and how far."""

from __future__ import annotations

import pytest

from common.entries import StreamId
from gpu_worker.engine.scheduler import Demand, Row, Schedule, Scheduler, chunk_ladder


def ids(*numbers: int) -> list[StreamId]:
    return [StreamId(number) for number in numbers]


def planned(scheduler: Scheduler, demands: dict[int, Demand]) -> Schedule:
    return scheduler.schedule(lambda stream: demands[int(stream)])


def filled(max_rows: int, max_chunks: int, streams: int, chunk_frames: int = 2) -> Scheduler:
    scheduler = Scheduler(max_rows, max_chunks, chunk_frames)
    for stream in range(streams):
        scheduler.add(StreamId(stream))
    return scheduler


def test_the_ladder_doubles() -> None:
    assert chunk_ladder(1) == (1,)
    assert chunk_ladder(8) == (1, 2, 4, 8)
    assert chunk_ladder(7) == (1, 2, 4)


def test_at_most_max_rows_from_the_front() -> None:
    scheduler = filled(2, 4, 5)
    demands = {n: Demand(1, 0, ends=False) for n in range(5)}
    assert [row.stream for row in planned(scheduler, demands).rows] == ids(0, 1)
    assert len(scheduler) == 5, "planning changes nothing"


def test_every_stream_has_its_turn_before_anyone_has_a_second() -> None:
    scheduler = filled(2, 1, 5)
    demands = {n: Demand(9, 0, ends=False) for n in range(5)}
    served: list[int] = []
    for _ in range(10):
        schedule = planned(scheduler, demands)
        served += [int(row.stream) for row in schedule.rows]
        scheduler.done(schedule, lambda _: True)
    assert served == [0, 1, 2, 3, 4] * 4


def test_streams_that_are_behind_together_take_several_chunks() -> None:
    demands = {0: Demand(9, 0, ends=False), 1: Demand(5, 0, ends=False)}
    schedule = planned(filled(8, 8, 2), demands)
    assert schedule.chunks == 4
    assert [row.chunks for row in schedule.rows] == [4, 4]


def test_one_on_time_holds_the_step_to_its_chunk() -> None:
    demands = {0: Demand(9, 0, ends=False), 1: Demand(1, 0, ends=False)}
    assert [row.chunks for row in planned(filled(8, 8, 2), demands).rows] == [1, 1]


def test_an_end_joins_any_step_that_has_room_for_it() -> None:
    demands = {0: Demand(4, 0, ends=False), 1: Demand(1, 1, ends=True), 2: Demand(0, 0, ends=True)}
    schedule = planned(filled(8, 8, 3), demands)
    assert schedule == Schedule(
        4,
        (
            Row(StreamId(0), 4, 0, ends=False),
            Row(StreamId(1), 1, 1, ends=True),
            Row(StreamId(2), 0, 0, ends=True),
        ),
    )


def test_an_end_without_room_takes_whole_chunks_first() -> None:
    demands = {0: Demand(2, 0, ends=False), 1: Demand(2, 1, ends=True)}
    assert planned(filled(8, 2, 2), demands).rows[1] == Row(StreamId(1), 2, 0, ends=False)


def test_ends_alone_take_as_much_as_they_need() -> None:
    assert planned(filled(8, 8, 1), {0: Demand(3, 1, ends=True)}) == Schedule(
        4, (Row(StreamId(0), 3, 1, ends=True),)
    )
    assert planned(filled(8, 8, 1), {0: Demand(0, 2, ends=True)}).chunks == 1
    assert planned(filled(8, 8, 1), {0: Demand(0, 0, ends=True)}).chunks == 1


def test_whoever_is_done_leaves_and_can_come_back_once() -> None:
    scheduler = filled(4, 1, 3)
    schedule = planned(scheduler, {n: Demand(1, 0, ends=False) for n in range(3)})
    scheduler.remove(StreamId(1))
    scheduler.done(schedule, lambda stream: stream == 2)
    assert [StreamId(n) in scheduler for n in range(3)] == [False, False, True]
    scheduler.add(StreamId(2))
    assert len(scheduler) == 1


def test_an_empty_line_is_an_empty_step() -> None:
    assert planned(filled(4, 1, 0), {}).rows == ()


def test_a_step_has_room() -> None:
    with pytest.raises(ValueError, match="at least one row"):
        Scheduler(0, 1, 2)
