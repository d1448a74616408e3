"""Kokoro's alphabet: symbols of phonemes, stress and punctuation, and the sounds among them.

`symbols.json` is Kokoro's table (Apache-2.0). The phoneme head of training learns sounds alone.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Final

_MARKS: Final = "ˈˌː"


class Inventory:
    """Symbols to ids, and ids to labels of the phoneme head, 0 .. `num_labels` - 1."""

    def __init__(self, ids: Mapping[str, int]) -> None:
        self._ids = ids
        sounds = sorted(index for symbol, index in ids.items() if symbol.isalpha() and symbol not in _MARKS)
        self._labels = {index: label for label, index in enumerate(sounds)}
        self.num_labels = len(sounds)

    @classmethod
    def of_kokoro(cls) -> Inventory:
        """Return the one of this package."""
        path = Path(__file__).parent / "symbols.json"
        return cls(json.loads(path.read_text(encoding="utf-8")))

    def symbols(self, phonemes: str) -> tuple[int, ...]:
        """Ids of a string of phonemes; what the table has not is left out."""
        return tuple(self._ids[symbol] for symbol in phonemes if symbol in self._ids)

    def labels(self, symbols: Iterable[int]) -> tuple[int, ...]:
        """Labels of the sounds among some ids."""
        return tuple(self._labels[index] for index in symbols if index in self._labels)
