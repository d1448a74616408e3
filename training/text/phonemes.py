"""Conversion of lines to phonemes of the synthesiser's alphabet, by hibari-tts' rules and lexicons."""

from __future__ import annotations

import lzma
import random
import re
import string
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from training.text.sources import Line

BRITISH_SHARE: Final = 0.15
MAX_PHONEMES: Final = 300
_NAMES: Final = Path(__file__).parent / "names.tsv"
_SPELT: Final = re.compile(r"\b[A-Z](?: [A-Z])*\b|[^A-Z]+")
_UNREADABLE: Final = "❓"


@dataclass(frozen=True, slots=True)
class Phrase:
    """A line ready to be spoken: label, source, accent ("us" or "gb"), phonemes."""

    label: str
    source: str
    accent: str
    phonemes: str


class Pronouncer:
    """Converts lines to phonemes.

    A line with a word that is in neither lexicon nor list of names is dropped: the network that guesses
    unknown words is wrong often enough to teach wrong spellings.
    """

    def __init__(self, seed: int) -> None:
        from hibari.g2p import G2P

        self._random = random.Random(seed)
        self._names = dict(line.split("\t") for line in _NAMES.read_text(encoding="utf-8").splitlines())
        self._unknown = self._named = False
        self._readers: dict[str, Any] = {
            "us": G2P(oov=self._name), "gb": G2P(oov=self._name, british=True)
        }  # fmt: skip
        self._letters = {accent: self._alphabet(accent) for accent in self._readers}

    def phrase(self, line: Line) -> Phrase | None:
        """Return the phrase of a line, or None when a word has no known pronunciation."""
        accent = "gb" if self._random.random() < BRITISH_SHARE else "us"
        phonemes = self._read(line.written, accent)
        if self._named and accent == "gb":
            # Names have American phonemes only.
            accent = "us"
            phonemes = self._read(line.written, accent)
        if self._unknown or _UNREADABLE in phonemes or not 2 < len(phonemes) < MAX_PHONEMES:
            return None
        return Phrase(line.label, line.source, accent, phonemes)

    def _read(self, written: str, accent: str) -> str:
        self._unknown = self._named = False
        if not re.search(r"\b[A-Z]\b", re.sub(r"\b[AI]\b", "", written)):
            return str(self._readers[accent](written))
        parts = []
        for part in _SPELT.findall(written):
            if re.fullmatch(r"[A-Z](?: [A-Z])*", part):
                parts += [self._letters[accent][letter] for letter in part.split()]
            elif part.strip():
                parts.append(str(self._readers[accent](part)).strip())
        return " ".join(parts)

    def _name(self, word: str) -> str:
        """Return the phonemes of a word that is not in the lexicon, which calls this."""
        known = self._names.get(word.lower())
        self._named |= known is not None
        self._unknown |= known is None
        return known or ""

    def _alphabet(self, accent: str) -> dict[str, str]:
        letters = {
            letter: str(self._readers[accent](f"{letter},")).strip(", ") for letter in string.ascii_uppercase
        }
        # Alone, these letters would be read as words.
        return {**letters, "A": "ˈA", "I": "ˈI", "Z": "zˈi" if accent == "us" else "zˈɛd"}


def pronounced(lines: Iterable[Line], seed: int) -> Iterator[Phrase]:
    """Yield the phrases of all lines with known pronunciation."""
    pronouncer = Pronouncer(seed)
    for line in lines:
        phrase = pronouncer.phrase(line)
        if phrase is not None:
            yield phrase


def write_phrases(phrases: Sequence[Phrase], path: Path) -> None:
    """Write phrases as tab-separated lines, compressed."""
    text = "".join(f"{one.label}\t{one.source}\t{one.accent}\t{one.phonemes}\n" for one in phrases)
    path.write_bytes(lzma.compress(text.encode(), preset=6))


def read_phrases(path: Path) -> list[Phrase]:
    """Read the file of `write_phrases`."""
    lines = lzma.decompress(path.read_bytes()).decode().splitlines()
    return [Phrase(*line.split("\t")) for line in lines]
