"""Any order of taking and giving back pages keeps every page in exactly one place."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from gpu_worker.engine.interface import OutOfPages
from gpu_worker.engine.slots.block_manager import BlockManager

SLOTS, PAGES, PAGE_FRAMES, RING = 5, 11, 4, 4


class Pages(RuleBasedStateMachine):
    """Slots grow by any number of frames and are released; `frames` is what each has reached."""

    def __init__(self) -> None:
        super().__init__()
        self.blocks = BlockManager(PAGES, PAGE_FRAMES, RING, SLOTS)
        self.frames = [0] * SLOTS

    @rule(slot=st.integers(0, SLOTS - 1), more=st.integers(1, 3 * PAGE_FRAMES))
    def grow(self, slot: int, more: int) -> None:
        end = self.frames[slot] + more
        wanted = min(RING, -(-end // PAGE_FRAMES)) - len(self.blocks.pages(slot))
        free, before = self.blocks.num_free, self.blocks.pages(slot)
        if wanted > free:
            with pytest.raises(OutOfPages):
                self.blocks.grow(slot, end)
            assert self.blocks.pages(slot) == before, "a refusal takes nothing"
            return
        self.blocks.grow(slot, end)
        self.frames[slot] = end
        assert self.blocks.pages(slot)[: len(before)] == before, "pages stay where they are"
        assert self.blocks.num_free == free - max(0, wanted)

    @precondition(lambda self: any(self.frames))
    @rule(slot=st.integers(0, SLOTS - 1))
    def release(self, slot: int) -> None:
        self.blocks.release(slot)
        self.frames[slot] = 0
        assert self.blocks.pages(slot) == ()

    @invariant()
    def adds_up(self) -> None:
        self.blocks.check_integrity()

    @invariant()
    def the_ring_holds_the_newest_frames_each_in_a_place_of_its_own(self) -> None:
        places: set[tuple[int, int]] = set()
        expected = 0
        for slot, frames in enumerate(self.frames):
            kept = np.arange(max(0, frames - RING * PAGE_FRAMES), frames, dtype=np.int64)
            pages, offsets = self.blocks.locate(slot, kept)
            places |= set(zip(pages.tolist(), offsets.tolist(), strict=True))
            expected += len(kept)
            assert (pages < PAGES).all(), "no frame stands in the spare page"
        assert len(places) == expected


Pages.TestCase.settings = settings(max_examples=60, stateful_step_count=30)
TestPages: Any = Pages.TestCase
