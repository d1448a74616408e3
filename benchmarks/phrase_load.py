"""Phrases for a trial of `benchmarks.engine`: a share of the streams has a list, and lists are replaced."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

import numpy as np

from common.phrases import Phrase

NUM_PHRASES: Final = 100
_SYLLABLES: Final = (
    "ba",
    "den",
    "fo",
    "gri",
    "ha",
    "lun",
    "mer",
    "no",
    "pa",
    "ris",
    "sol",
    "ti",
    "ver",
    "wal",
    "ze",
)


@dataclass(frozen=True, slots=True)
class PhraseLoad:
    """share: of the streams that have phrases.  lists_per_second: changes, over all of them."""

    share: float = 0.0
    lists_per_second: float = 0.0


NO_PHRASES: Final = PhraseLoad()


class PhraseLists:
    """Lists of made-up names, no two the same, and when the next stream gets another."""

    def __init__(self, load: PhraseLoad, num_streams: int, seed: int) -> None:
        self._rng = np.random.default_rng(seed)
        self._load = load
        self.boosted = np.flatnonzero(self._rng.random(num_streams) < load.share)
        self._is_boosted = np.zeros(num_streams, dtype=np.bool_)
        self._is_boosted[self.boosted] = True
        self._num_changed = 0

    def of(self, stream: int) -> tuple[Phrase, ...]:
        """Return the list with which a stream begins."""
        return self._made() if self._is_boosted[stream] else ()

    def changes(self, seconds: float) -> int:
        """Return how many changes are due since the start and have not been taken."""
        return int(seconds * self._load.lists_per_second) - self._num_changed

    def change(self, num_open: int) -> tuple[int, tuple[Phrase, ...]] | None:
        """Return an open stream, and its next list; None where no open stream has any."""
        self._num_changed += 1
        open_ones = self.boosted[self.boosted < num_open]
        if not len(open_ones):
            return None
        return int(self._rng.choice(open_ones)), self._made()

    def _made(self) -> tuple[Phrase, ...]:
        words = self._rng.integers(0, len(_SYLLABLES), (NUM_PHRASES, 4)).tolist()
        return tuple(Phrase("".join(_SYLLABLES[one] for one in word)) for word in words)
