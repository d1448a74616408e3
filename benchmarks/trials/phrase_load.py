"""Phrases for a trial of `benchmarks.engine`: a share of the streams has a list, and lists are replaced."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

import numpy as np

from common.phrases import Phrase
from gpu_worker.model.tokenizer import SPACE_MARK, Tokenizer

NUM_PHRASES: Final = 100
# Pieces after the one that begins a phrase's word, as in names and terms.
_MORE_PIECES: Final = 3


@dataclass(frozen=True, slots=True)
class PhraseLoad:
    """share: of the streams that have phrases.  lists_per_second: changes, over all of them."""

    share: float = 0.0
    lists_per_second: float = 0.0


NO_PHRASES: Final = PhraseLoad()


class PhraseLists:
    """Lists of made-up words, no two the same, and when the next stream gets another.

    vocabulary: of the engine under test; words are made of its pieces, so that it can write them.
    seconds: for how long lists are changed.
    """

    def __init__(
        self, load: PhraseLoad, num_streams: int, seed: int, vocabulary: Tokenizer, seconds: float = 0.0
    ) -> None:
        self._rng = np.random.default_rng(seed)
        self._load = load
        self.boosted = np.flatnonzero(self._rng.random(num_streams) < load.share)
        self._num_changed = 0
        tokens = [token for token in range(vocabulary.vocab_size) if not vocabulary.is_special(token)]
        pieces = [vocabulary.piece(token) for token in tokens]
        self._first = np.array([piece[1:] for piece in pieces if piece[:1] == SPACE_MARK and piece[1:]])
        self._more = np.array([piece for piece in pieces if piece.isalnum()])
        # Made before the trial: what a client sends costs its worker nothing to make up.
        self._of = {stream: self.made() for stream in self.boosted.tolist()}
        self._others = [self.made() for _ in range(int(seconds * load.lists_per_second))]

    def of(self, stream: int) -> tuple[Phrase, ...]:
        """Return the list with which a stream begins."""
        return self._of.get(stream, ())

    def changes(self, seconds: float) -> int:
        """Return how many changes are due since the start and have not been taken."""
        return int(seconds * self._load.lists_per_second) - self._num_changed

    def change(self, num_open: int) -> tuple[int, tuple[Phrase, ...]] | None:
        """Return an open stream, and its next list; None where no open stream has any."""
        self._num_changed += 1
        open_ones = self.boosted[self.boosted < num_open]
        if not len(open_ones):
            return None
        return int(self._rng.choice(open_ones)), self._others.pop() if self._others else self.made()

    def made(self) -> tuple[Phrase, ...]:
        """Return a list that no stream has yet."""
        first = self._rng.choice(self._first, NUM_PHRASES)
        more = self._rng.choice(self._more, (NUM_PHRASES, _MORE_PIECES))
        return tuple(
            Phrase(word + "".join(rest)) for word, rest in zip(first.tolist(), more.tolist(), strict=True)
        )
