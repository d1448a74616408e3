"""Snapshots are spread: few after a step, a share of the time, later rather than never."""

from __future__ import annotations

from itertools import pairwise

import pytest

from common.entries import StreamId
from gpu_worker.engine.interface import ENGINE_SAMPLE_RATE
from gpu_worker.pipeline.checkpoints import LATEST, MAX_AFTER_STEP, SHARE, CheckpointQueue

REPLAY_S = 60.0
CHUNK_S = 0.16
# Chunks of streams are complete at times of their own: so many steps while each has one.
STEPS_A_CHUNK = 8


class Clock:
    def __init__(self) -> None:
        self.now_s = 0.0

    def __call__(self) -> float:
        return self.now_s


def nobody(_: StreamId) -> bool:
    return False


def samples(seconds: float) -> int:
    return int(seconds * ENGINE_SAMPLE_RATE)


def simulate(num_streams: int, snapshot_s: float, seconds: float) -> tuple[list[float], list[int], float]:
    """Streams that began within a chunk, in real time; spacings, snapshots a step, share of work."""
    clock = Clock()
    queue = CheckpointQueue(REPLAY_S, clock)
    streams = [StreamId(number) for number in range(num_streams)]
    for stream in streams:
        queue.opened(stream, 0)
    last = dict.fromkeys(streams, 0.0)
    spacings: list[float] = []
    in_step: list[int] = []
    work_s = 0.0
    while clock.now_s < seconds:
        clock.now_s += CHUNK_S / STEPS_A_CHUNK
        at_s = clock.now_s
        for stream in streams[len(in_step) % STEPS_A_CHUNK :: STEPS_A_CHUNK]:
            queue.decoded(stream, samples(at_s))
        in_step.append(0)
        for stream in queue.next_ones(nobody):
            clock.now_s += snapshot_s
            work_s += snapshot_s
            in_step[-1] += 1
            if last[stream]:
                spacings.append(at_s - last[stream])
            last[stream] = at_s
            queue.taken(stream, samples(at_s))
    return spacings, in_step, work_s / clock.now_s


def test_a_stream_is_due_after_half_the_replay() -> None:
    clock = Clock()
    queue = CheckpointQueue(REPLAY_S, clock)
    stream = StreamId(1)
    queue.taken(stream, samples(100))
    clock.now_s = 1.0
    queue.decoded(stream, samples(129.9))
    assert list(queue.next_ones(nobody)) == []
    queue.decoded(stream, samples(130))
    assert next(queue.next_ones(nobody)) == stream
    queue.taken(stream, samples(130))
    assert len(queue) == 0


def test_streams_that_came_together_are_spread() -> None:
    spacings, in_step, share = simulate(100, 0.004, 200.0)
    assert max(in_step) <= MAX_AFTER_STEP
    assert len(spacings) >= 450
    assert share <= SHARE
    assert min(spacings) >= REPLAY_S / 2 - 0.001
    assert max(spacings) <= LATEST * REPLAY_S


def test_spacing_grows_with_the_load_and_stays_below_the_replay() -> None:
    few, _, _ = simulate(20, 0.005, 200.0)
    # 1,500 streams every 30 s at 5 ms each would be a quarter of the time.
    many, in_step, share = simulate(1_500, 0.005, 200.0)
    assert max(few) < REPLAY_S / 2 + 2
    assert max(few) < max(many) <= LATEST * REPLAY_S
    assert max(in_step) <= MAX_AFTER_STEP
    assert share == pytest.approx(SHARE, abs=0.03)


def test_a_forgotten_stream_has_no_turn() -> None:
    clock = Clock()
    queue = CheckpointQueue(REPLAY_S, clock)
    for number in range(3):
        queue.opened(StreamId(number), 0)
        queue.decoded(StreamId(number), samples(40))
    clock.now_s = 1.0
    queue.drop(StreamId(0))
    seen = []
    for stream in queue.next_ones(nobody):
        seen.append(stream)
        queue.taken(stream, samples(40))
    assert seen == [1, 2]


def test_first_snapshots_come_evenly_over_the_spacing() -> None:
    queue, streams = CheckpointQueue(REPLAY_S, Clock()), [StreamId(number) for number in range(1_000)]
    for stream in streams:
        queue.opened(stream, 0)
    in_line = [0]
    for second in range(1, 31):
        for stream in streams:
            queue.decoded(stream, samples(second))
        in_line.append(len(queue))
    assert in_line[-1] == len(streams)
    assert max(later - earlier for earlier, later in pairwise(in_line)) <= 1.2 * len(streams) / 30


def test_a_stream_under_way_lets_others_go_first_until_it_is_late() -> None:
    clock = Clock()
    queue = CheckpointQueue(REPLAY_S, clock)
    under_way, free = StreamId(1), StreamId(2)
    for stream in (under_way, free):
        queue.taken(stream, 0)
        queue.decoded(stream, samples(31))
    clock.now_s = 1.0
    for stream in queue.next_ones(under_way.__eq__):
        assert stream == free
        queue.taken(stream, samples(31))
    queue.decoded(under_way, samples(LATEST * REPLAY_S + 1))
    assert next(queue.next_ones(under_way.__eq__)) == under_way


def test_in_a_hurry_streams_are_due_after_a_second_and_the_most_audio_first() -> None:
    clock = Clock()
    queue = CheckpointQueue(REPLAY_S, clock)
    seconds = {StreamId(1): 0.5, StreamId(2): 2.0, StreamId(3): 9.0, StreamId(4): 5.0}
    for stream, decoded_s in seconds.items():
        queue.opened(stream, 0)
        queue.taken(stream, samples(100.0))
        queue.decoded(stream, samples(100.0 + decoded_s))
    queue.drop(StreamId(4))
    clock.now_s += 10.0
    assert list(queue.next_ones(nobody)) == []
    queue.hurry()
    due = []
    for stream in queue.next_ones(nobody):
        due.append(stream)
        queue.taken(stream, samples(100.0 + seconds[stream]))
    assert due == [StreamId(3), StreamId(2)]
    queue.hurry()
    assert list(queue.next_ones(nobody)) == []
