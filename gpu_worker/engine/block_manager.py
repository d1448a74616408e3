"""Who has which page of the key/value cache.

A stream's frames fill its pages one after the other.  It takes a page when it reaches its first frame, up
to a ring of `ring_pages`; from then on it writes over its own oldest frames.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from gpu_worker.engine.interface import OutOfPages


class BlockManager:
    """Free pages and the block table of every slot.

    Args:
        num_pages: pages there are.
        page_frames: encoder frames of a page.
        ring_pages: most pages of one stream; 0 for a model that has none.
        num_slots: rows of the block table.
    """

    def __init__(self, num_pages: int, page_frames: int, ring_pages: int, num_slots: int) -> None:
        if num_pages < 1 or page_frames < 1 or ring_pages < 0:
            raise ValueError("there must be at least one page of one frame")
        self.num_pages = num_pages
        self.page_frames = page_frames
        self.ring_pages = ring_pages
        self._free = list(range(num_pages - 1, -1, -1))
        self._pages: list[list[int]] = [[] for _ in range(num_slots)]
        # Entries without a page name the spare one, so that a gather never leaves the cache.
        self.table: NDArray[np.int32] = np.full((num_slots + 1, ring_pages), num_pages, dtype=np.int32)

    @property
    def num_free(self) -> int:
        """Pages that no stream has."""
        return len(self._free)

    def pages(self, slot: int) -> tuple[int, ...]:
        """The pages of a slot in the order of its frames."""
        return tuple(self._pages[slot])

    def needed(self, slot: int, end_frame: int) -> int:
        """Pages that a slot still has to take before frames up to `end_frame` (exclusive) fit."""
        wanted = min(self.ring_pages, -(-end_frame // self.page_frames))
        return max(0, wanted - len(self._pages[slot]))

    def grow(self, slot: int, end_frame: int) -> None:
        """Give a slot the pages for its frames up to `end_frame` (exclusive).

        Raises OutOfPages, and then has given none.
        """
        count = self.needed(slot, end_frame)
        if count > len(self._free):
            raise OutOfPages(
                f"The cache has {len(self._free)} of {self.num_pages} pages left, {count} are needed."
            )
        taken = self._pages[slot]
        for _ in range(count):
            page = self._free.pop()
            self.table[slot, len(taken)] = page
            taken.append(page)

    def release(self, slot: int) -> None:
        """Take all pages of a slot back."""
        self._free.extend(reversed(self._pages[slot]))
        self._pages[slot] = []
        self.table[slot] = self.num_pages

    def locate(self, slot: int, frames: NDArray[np.int64]) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """Page and offset of a slot's frames."""
        logical = (frames // self.page_frames) % self.ring_pages
        return self.table[slot, logical].astype(np.int64), frames % self.page_frames

    def check_integrity(self) -> None:
        """Raise AssertionError unless free and taken pages are all pages, each once, and tables agree."""
        taken = [page for pages in self._pages for page in pages]
        assert sorted(taken + self._free) == list(range(self.num_pages)), "a page is lost or given twice"
        for slot, pages in enumerate(self._pages):
            expected = pages + [self.num_pages] * (self.ring_pages - len(pages))
            assert self.table[slot].tolist() == expected, f"the block table of slot {slot} is wrong"
        assert (self.table[-1] == self.num_pages).all(), "the spare row of the block table has a page"
