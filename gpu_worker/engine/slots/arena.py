"""An allocator of pieces in an array of fixed size: allocated and freed in any order, never moved."""

from __future__ import annotations

from bisect import bisect_left, insort


class Arena:
    """First fit over a sorted list of holes; neighbours that are both free are one hole.

    size: size of the array, in elements of the caller's unit.
    """

    def __init__(self, size: int) -> None:
        self.size = size
        self._holes: list[tuple[int, int]] = [(0, size)] if size else []  # begin, end
        self._taken: dict[int, int] = {}

    def allocate(self, size: int) -> int | None:
        """Return the begin of a new piece of `size` elements, at least 1; None if no hole is large enough."""
        for index, (begin, end) in enumerate(self._holes):
            if end - begin >= size:
                if end - begin == size:
                    del self._holes[index]
                else:
                    self._holes[index] = (begin + size, end)
                self._taken[begin] = size
                return begin
        return None

    def free(self, begin: int) -> None:
        """Free an allocated piece. Raises KeyError for any other place."""
        end = begin + self._taken.pop(begin)
        index = bisect_left(self._holes, (begin, end))
        if index < len(self._holes) and self._holes[index][0] == end:
            end = self._holes.pop(index)[1]
        if index and self._holes[index - 1][1] == begin:
            begin = self._holes.pop(index - 1)[0]
        insort(self._holes, (begin, end))

    @property
    def end(self) -> int:
        """Index after all pieces."""
        return max((begin + size for begin, size in self._taken.items()), default=0)

    @property
    def num_taken(self) -> int:
        """Number of allocated pieces."""
        return len(self._taken)

    def check_integrity(self) -> None:
        """Raise AssertionError unless pieces and holes cover the array once."""
        pieces = [(begin, begin + size) for begin, size in self._taken.items()]
        at = 0
        for begin, end in sorted(pieces + self._holes):
            assert begin == at, "a place is lost or given twice"
            at = end
        assert at == self.size, "the end is lost"
        ends = {end for _, end in self._holes}
        assert not any(begin in ends for begin, _ in self._holes), "holes stand side by side"
