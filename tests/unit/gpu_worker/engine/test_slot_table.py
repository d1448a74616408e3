"""Plans of the slot table, and the rings that it counts for."""

from __future__ import annotations

import numpy as np
import pytest

from gpu_worker.engine.clock import ChunkClock
from gpu_worker.engine.sample_rings import SampleRings
from gpu_worker.engine.slot_table import SlotTable

CLOCK = ChunkClock(160, 200, 8, 2)


def table_with(fed: list[int]) -> SlotTable:
    table = SlotTable(len(fed), CLOCK)
    for slot, samples in enumerate(fed):
        table.open(slot, slot + 1, 0, 0)
        table.fed[slot] = samples
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


def test_unplanned_rows_keep_their_turn() -> None:
    table = table_with([100_000] * 3)
    plan = table.plan(2)
    assert plan is not None
    table.unplan(plan)
    assert table.planned.tolist() == [0, 0, 0]
    again = table.plan(2)
    assert again is not None
    assert again.slots_B.tolist() == plan.slots_B.tolist()


@pytest.mark.parametrize("samples", [0, 1, 159, 160, 1_480, 2_639, 2_640, 4_040, 9_999, 16_000, 20_520])
@pytest.mark.parametrize("chunk_frames", [1, 2, 14])
def test_a_finished_stream_ends_with_all_its_frames(samples: int, chunk_frames: int) -> None:
    clock = ChunkClock(160, 200, 8, chunk_frames)
    table = SlotTable(1, clock)
    table.open(0, 1, 0, 0)
    table.fed[0], table.finished[0] = samples, True
    frames, whole, plans = 0, 0, []
    while (plan := table.plan(1)) is not None:
        assert 0 <= plan.frames_B[0] <= chunk_frames
        assert plan.start_B[0] == frames
        frames += int(plan.frames_B[0])
        whole += bool(plan.whole_B[0])
        plans.append(plan)
    assert frames == clock.total_frames(samples)
    assert whole == clock.whole_chunks(samples)
    assert [bool(plan.ends_B[0]) for plan in plans] == [False] * (len(plans) - 1) + [True]


def test_closed_slots_are_in_no_plan() -> None:
    table = table_with([100_000, 100_000])
    table.close(0)
    plan = table.plan(4)
    assert plan is not None
    assert plan.slots_B.tolist() == [1]


def test_rings_keep_order_whatever_does_not_fit() -> None:
    table = table_with([0, 0])
    rings = SampleRings(np.zeros((2, 1_000), dtype=np.float32), table)
    rng, samples = np.random.default_rng(0), np.arange(20_000, dtype=np.float32)
    fed = read = 0
    while read < len(samples):
        size = min(int(rng.integers(1, 1_500)), len(samples) - fed)
        rings.append(1, samples[fed : fed + size])
        fed += size
        assert int(table.fed[1]) + rings.beside(1) == fed
        end = min(int(table.fed[1]), read + int(rng.integers(0, 1_000)))
        assert rings.copy(1, read, end).tolist() == samples[read:end].tolist()
        read = end
        rings.free(np.array([1]), np.array([read]))
    assert rings.beside(1) == 0
    assert table.fed[0] == 0
