"""The allocation of the pages of the key/value cache to slots.

A stream's frames fill its pages one after the other. It takes a page when it reaches the page's first frame,
up to a ring of `ring_pages`; from then on it overwrites its own oldest frames.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from gpu_worker.engine.interface import OutOfPages


class BlockManager:
    """Free pages and the block table of every slot.

    Args:
        num_pages: number of pages.
        page_frames: encoder frames of a page.
        ring_pages: most pages of one stream; 0 for a model without pages.
        num_slots: rows of the block table.
    """

    def __init__(self, num_pages: int, page_frames: int, ring_pages: int, num_slots: int) -> None:
        if num_pages < 1 or page_frames < 1 or ring_pages < 0:
            raise ValueError("there must be at least one page of one frame")
        self.num_pages = num_pages
        self.page_frames = page_frames
        self.ring_pages = ring_pages
        # A stack: its first `num_free` pages are free.
        self._free: NDArray[np.int32] = np.arange(num_pages, dtype=np.int32)[::-1].copy()
        self._num_free = num_pages
        # Number of pages of each slot; they come first in its row of the table.
        self.held: NDArray[np.int64] = np.zeros(num_slots, dtype=np.int64)
        # Entries without a page name the spare page, so that a gather never leaves the cache.
        self.table: NDArray[np.int32] = np.full((num_slots + 1, ring_pages), num_pages, dtype=np.int32)

    @property
    def num_free(self) -> int:
        """Number of pages that no stream has."""
        return self._num_free

    def pages(self, slot: int) -> tuple[int, ...]:
        """Return the pages of a slot in the order of its frames."""
        return tuple(self.table[slot, : self.held[slot]].tolist())

    def missing(self, slots_B: NDArray[np.int64], end_B: NDArray[np.int64]) -> NDArray[np.int64]:
        """Return how many pages slots still need for their frames up to `end_B` (exclusive), [B]."""
        wanted_B = np.minimum(self.ring_pages, -(-end_B // self.page_frames))
        missing_B: NDArray[np.int64] = np.maximum(wanted_B - self.held[slots_B], 0)
        return missing_B

    def allocate(self, slots_B: NDArray[np.int64], count_B: NDArray[np.int64]) -> None:
        """Allocate `count_B` pages to different slots. Raises OutOfPages; no page is allocated then."""
        count = int(count_B.sum())
        if count > self._num_free:
            raise OutOfPages(
                f"The cache has {self._num_free} of {self.num_pages} pages left, {count} are needed."
            )
        if not count:
            return
        row_N = np.repeat(slots_B, count_B)
        number_N = np.arange(count) - np.repeat(np.cumsum(count_B) - count_B, count_B)
        self._num_free -= count
        self.table[row_N, self.held[row_N] + number_N] = self._free[self._num_free :][:count][::-1]
        self.held[slots_B] += count_B

    def grow(self, slot: int, end_frame: int) -> None:
        """Allocate the pages for a slot's frames up to `end_frame` (exclusive).

        Raises OutOfPages; no page is allocated then.
        """
        slots = np.array([slot])
        self.allocate(slots, self.missing(slots, np.array([end_frame])))

    def release(self, slot: int) -> None:
        """Free all pages of a slot."""
        count = int(self.held[slot])
        self._free[self._num_free : self._num_free + count] = self.table[slot, :count][::-1]
        self._num_free += count
        self.held[slot] = 0
        self.table[slot] = self.num_pages

    def locate(self, slot: int, frames: NDArray[np.int64]) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """Return page and offset of a slot's frames."""
        logical = (frames // self.page_frames) % self.ring_pages
        return self.table[slot, logical].astype(np.int64), frames % self.page_frames

    def check_integrity(self) -> None:
        """Raise AssertionError unless free and taken pages are all pages, each once, and tables agree."""
        taken = [page for slot in range(len(self.held)) for page in self.pages(slot)]
        free = self._free[: self._num_free].tolist()
        assert sorted(taken + free) == list(range(self.num_pages)), "a page is lost or given twice"
        for slot, count in enumerate(self.held.tolist()):
            assert (self.table[slot, count:] == self.num_pages).all(), (
                f"the block table of slot {slot} is wrong"
            )
        assert (self.table[-1] == self.num_pages).all(), "the spare row of the block table has a page"
