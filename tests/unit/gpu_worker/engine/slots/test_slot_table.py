"""Plans of the slot table, and the rings that it counts for."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest

from gpu_worker.engine.slots.clock import ChunkClock
from gpu_worker.engine.slots.sample_rings import SampleRings
from gpu_worker.engine.slots.slot_table import SlotTable
from gpu_worker.engine.steps import RingMemory

CLOCK = ChunkClock(160, 200, 8, 2)


def table_with(fed: list[int]) -> SlotTable:
    table = SlotTable(len(fed), CLOCK)
    for slot, samples in enumerate(fed):
        table.open(slot, slot + 1, 0, 0)
        table.fed[slot] = samples
    table.was_fed()
    return table


def test_plans_one_chunk_of_each_ready_slot() -> None:
    table = table_with([CLOCK.samples_of_chunks(1), CLOCK.samples_of_chunks(1) - 1, 50_000])
    plan = table.plan(8)
    assert plan is not None
    assert plan.slots_B.tolist() == [0, 2]
    assert plan.frames_B.tolist() == [2, 2]
    assert not plan.ends_B.any()
    after = table.plan(8)
    assert after is not None
    assert after.slots_B.tolist() == [2]
    assert after.start_B.tolist() == [2]


@pytest.mark.parametrize(("recording", "late"), [(False, 2), (True, 0)])
def test_chunks_of_a_live_stream_that_wait_for_others_are_late(recording: bool, late: int) -> None:
    """All audio of a recording may be there from the beginning: that is no delay."""
    table = SlotTable(1, CLOCK)
    table.open(0, 1, 0, 0, recording=recording)
    table.fed[0] = CLOCK.samples_of_chunks(3)
    table.was_fed()
    for _ in range(3):
        assert table.plan(8) is not None
    assert table.num_late == late


def test_rows_bring_each_sample_once_and_the_last_row_all_that_is_left() -> None:
    fed = CLOCK.samples_of_chunks(3) + 77
    table, brought = table_with([fed]), []
    table.finish(0)
    while (plan := table.plan(1)) is not None:
        brought += table.new_samples(plan).tolist()
    assert brought == [CLOCK.samples_of_chunks(1), CLOCK.chunk_samples, CLOCK.chunk_samples + 77]
    assert sum(brought) == fed


def test_who_waits_longest_goes_first() -> None:
    table = table_with([100_000] * 5)
    last = dict.fromkeys(range(5), -1)
    for number in range(15):
        plan = table.plan(2)
        assert plan is not None
        for slot in plan.slots_B.tolist():
            # Nobody gets a second turn before each of the others could have had one.
            assert number - last[slot] <= 4
            last[slot] = number
    assert min(last.values()) >= 11


def with_recordings(num_live: int, num_recordings: int) -> SlotTable:
    """Live streams that have one chunk, and recordings, behind them, that have many."""
    table = SlotTable(num_live + num_recordings, CLOCK)
    for slot in range(num_live + num_recordings):
        is_recording = slot >= num_live
        table.open(slot, slot + 1, 0, 0, recording=is_recording)
        table.fed[slot] = 1_000_000 if is_recording else CLOCK.samples_of_chunks(1)
    table.was_fed()
    return table


def test_recordings_have_few_rows_beside_live_streams_and_take_turns_in_them() -> None:
    table = with_recordings(3, 4)
    plan = table.plan(8, 4)
    assert plan is not None
    assert plan.slots_B.tolist() == [0, 1, 2, 3]
    # The live streams wait for their next audio, and are there all the same.
    for slot in (4, 5, 6, 3):
        plan = table.plan(8, 4)
        assert plan is not None
        assert plan.slots_B.tolist() == [slot]
        assert plan.chunks_B.tolist() == [1]
    plan = table.plan(8, 4, recording_rows=3)
    assert plan is not None
    assert sorted(plan.slots_B.tolist()) == [4, 5, 6]


def test_recordings_have_no_step_by_themselves_out_of_a_gap() -> None:
    table = with_recordings(1, 2)
    plan = table.plan(8, in_gap=False)
    assert plan is not None
    assert plan.slots_B.tolist() == [0, 1]
    assert table.plan(8, in_gap=False) is None
    assert table.num_recordings == 2
    table.close(0)
    plan = table.plan(8, in_gap=False)
    assert plan is not None
    assert plan.slots_B.tolist() == [1, 2]
    table.close(1)
    table.close(2)
    assert table.num_recordings == 0


def test_recordings_alone_have_whole_steps() -> None:
    table = with_recordings(1, 3)
    table.close(0)
    plan = table.plan(8, 4)
    assert plan is not None
    assert plan.slots_B.tolist() == [1, 2, 3]
    assert plan.chunks_B.tolist() == [4, 4, 4]


@pytest.mark.parametrize("max_rows", [1, 2, 3])
def test_no_stream_starves_where_a_step_has_no_row_for_all(max_rows: int) -> None:
    table = with_recordings(3, 3)
    table.fed[:] = 1_000_000
    table.was_fed()
    planned = np.zeros(6, dtype=int)
    for _ in range(24):
        plan = table.plan(max_rows, 1, recording_rows=2)
        assert plan is not None
        assert len(plan.slots_B) <= max_rows
        planned[plan.slots_B] += 1
    assert planned.min() >= 4


def test_a_slot_forgets_that_it_had_a_recording() -> None:
    table = with_recordings(0, 1)
    table.close(0)
    table.open(0, 2, 0, 0)
    assert not table.recording.any()


def test_unplanned_rows_keep_their_turn_and_count_as_late_once() -> None:
    table = table_with([100_000] * 3)
    plan = table.plan(2)
    assert plan is not None
    assert table.num_late > 0
    table.unplan(plan)
    assert table.planned.tolist() == [0, 0, 0]
    assert table.num_late == 0
    again = table.plan(2)
    assert again is not None
    assert again.slots_B.tolist() == plan.slots_B.tolist()


def chunks_of(table: SlotTable, max_chunks: int) -> list[int]:
    plan = table.plan(8, max_chunks)
    assert plan is not None
    return [int(chunks) for chunks in plan.chunks_B]


def test_streams_that_are_behind_together_take_several_chunks() -> None:
    behind = [CLOCK.samples_of_chunks(9), CLOCK.samples_of_chunks(5)]
    assert chunks_of(table_with(behind), 8) == [4, 4]
    assert chunks_of(table_with(behind), 7) == [4, 4]
    assert chunks_of(table_with(behind), 3) == [2, 2]
    assert chunks_of(table_with(behind), 1) == [1, 1]


def test_one_on_time_holds_the_step_to_its_chunk() -> None:
    assert chunks_of(table_with([CLOCK.samples_of_chunks(9), CLOCK.samples_of_chunks(1)]), 8) == [1, 1]


def test_a_stream_at_its_end_holds_nobody_back() -> None:
    table = table_with([CLOCK.samples_of_chunks(4), CLOCK.samples_of_chunks(1) + 500, 0])
    table.finish(1)
    table.finish(2)
    plan = table.plan(8, 8)
    assert plan is not None
    assert plan.chunks_B.tolist() == [4, 1, 0]
    assert plan.ends_B.tolist() == [False, True, True]
    assert plan.frames_B.tolist() == [8, CLOCK.total_frames(int(table.fed[1])), 0]


def test_streams_at_their_ends_take_the_longest_step_together() -> None:
    table = table_with([CLOCK.samples_of_chunks(6) + 900, CLOCK.samples_of_chunks(1)])
    table.finish(0)
    table.finish(1)
    first = table.plan(8, 4)
    assert first is not None
    assert (first.chunks_B.tolist(), first.ends_B.tolist()) == ([4, 1], [False, True])
    second = table.plan(8, 4)
    assert second is not None
    assert (second.slots_B.tolist(), second.chunks_B.tolist()) == ([0], [2])
    assert second.ends_B.all() == (CLOCK.total_frames(int(table.fed[0])) <= 8 + 4)


@pytest.mark.parametrize("samples", [0, 1, 159, 160, 1_480, 2_639, 2_640, 4_040, 9_999, 16_000, 20_520])
@pytest.mark.parametrize("chunk_frames", [1, 2, 14])
@pytest.mark.parametrize("max_chunks", [1, 4])
def test_a_finished_stream_ends_with_all_its_frames(samples: int, chunk_frames: int, max_chunks: int) -> None:
    clock = ChunkClock(160, 200, 8, chunk_frames)
    table = SlotTable(1, clock)
    table.open(0, 1, 0, 0)
    table.fed[0] = samples
    table.finish(0)
    frames, whole, plans = 0, 0, []
    while (plan := table.plan(1, max_chunks)) is not None:
        assert 0 <= plan.frames_B[0] <= max_chunks * chunk_frames
        assert plan.start_B[0] == frames
        frames += int(plan.frames_B[0])
        whole += int(plan.chunks_B[0])
        plans.append(plan)
    assert frames == clock.total_frames(samples)
    assert whole == clock.whole_chunks(samples)
    assert [bool(plan.ends_B[0]) for plan in plans] == [False] * (len(plans) - 1) + [True]


def test_who_is_ready_follows_every_change() -> None:
    one, table = CLOCK.samples_of_chunks(1), table_with([0, 0, 0])
    rings = SampleRings(RingMemory.allocate(3, 10_240), table)

    def after(change: Callable[[], object]) -> list[int]:
        assert table.ready() is table.ready(), "looked for once between two changes"
        change()
        return list(table.ready())

    pcm16, floats = np.zeros(one, dtype=np.int16), np.zeros(one, dtype=np.float32)
    assert after(lambda: rings.append_pcm16(0, pcm16)) == [0]
    assert after(lambda: rings.append(1, floats)) == [0, 1]
    assert after(lambda: table.finish(2)) == [0, 1, 2]
    assert after(lambda: table.hold([0])) == [1, 2]
    assert after(lambda: table.hold([])) == [0, 1, 2]
    assert after(lambda: table.set_limit(1, 0)) == [0, 2]
    assert after(lambda: table.set_limit(1, None)) == [0, 1, 2]
    plan = table.plan(2)
    assert plan is not None
    assert table.ready().tolist() == [2]
    assert after(lambda: table.unplan(plan)) == [0, 1, 2]
    assert after(lambda: table.close(0)) == [1, 2]
    assert after(lambda: table.open(0, 9, 0, one)) == [0, 1, 2]
    assert after(lambda: table.plan(3)) == []


def test_closed_slots_are_in_no_plan() -> None:
    table = table_with([100_000, 100_000])
    table.close(0)
    plan = table.plan(4)
    assert plan is not None
    assert plan.slots_B.tolist() == [1]


@pytest.mark.parametrize("types", ["pcm16", "float32", "mixed"])
def test_rings_keep_order_whatever_does_not_fit(types: str) -> None:
    table = table_with([0, 0])
    rings = SampleRings(RingMemory.allocate(2, 1_000), table)
    rng, samples = np.random.default_rng(0), np.arange(20_000).astype(np.int16)
    scaled = samples.astype(np.float32) / np.float32(32_768)
    fed = read = 0
    while read < len(samples):
        size = min(int(rng.integers(1, 1_500)), len(samples) - fed)
        if types == "pcm16" or (types == "mixed" and rng.random() < 0.9):
            rings.append_pcm16(1, samples[fed : fed + size])
        else:
            rings.append(1, scaled[fed : fed + size])
        fed += size
        assert int(table.fed[1]) + rings.beside(1) == fed
        end = min(int(table.fed[1]), read + int(rng.integers(0, 1_000)))
        assert rings.copy(1, read, end).tolist() == scaled[read:end].tolist()
        read = end
        rings.free(np.array([1]), np.array([read]))
    assert rings.beside(1) == 0
    assert table.fed[0] == 0
    assert rings.is_float[1] == (types != "pcm16")


def test_a_ring_that_a_step_reads_keeps_its_type() -> None:
    table = table_with([0])
    rings = SampleRings(RingMemory.allocate(1, 10_000), table)
    rings.open(0, 0)
    rings.append_pcm16(0, np.arange(4_000, dtype=np.int16))
    plan = table.plan(1)
    assert plan is not None
    rings.append(0, np.full(10, 0.3, np.float32))
    rings.append_pcm16(0, np.full(10, 7, np.int16))
    assert not rings.is_float[0]
    assert rings.beside(0) == 20
    table.decoded[0] = table.planned[0]
    rings.free(plan.slots_B, np.array([1_000]))
    assert rings.is_float[0]
    assert rings.beside(0) == 0
    found = rings.copy(0, 1_000, 4_020)
    assert found[-10:].tolist() == [np.float32(7 / 32_768)] * 10
    assert found[-20:-10].tolist() == [np.float32(0.3)] * 10
    assert found[0] == np.float32(1_000 / 32_768)
