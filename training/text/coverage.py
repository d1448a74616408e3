"""Frequent words of English, and an order of the text in which a session hears each of them often enough.

A session speaks about the first 120,000 rows of the text. In random order, many words of everyday use would
come once or not at all among them. The lists are those of SCOWL (Debian's scowl, free licence).
"""

from __future__ import annotations

import random
import re
from collections import Counter
from collections.abc import Collection, Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from training.text.phonemes import Phrase

# How often a word should come, by the size of the SCOWL list that it is in: smaller lists are more frequent.
FREQUENT: Final = {10: 20, 20: 10, 35: 2}
# Words that should come this often should also come by themselves.
OFTEN: Final = 20
# Words that should come this often come before the others.
_SOON: Final = 10
# Rows that a session on one GPU speaks, about.
SPOKEN_ROWS: Final = 120_000
_SPELLINGS: Final = ("english", "american")
# Rows that a session speaks besides those that cover words, and the share of each source that they are drawn
# from: mostly what is said to machines and over telephones. Frames of single words are not among them.
_ORDINARY_ROWS: Final = 60_000
_ORDINARY: Final = {"template": 1.0, "chat": 0.4, "example": 0.4, "gloss": 0.4}
# Whether a pass takes frames of single words, and how many words of a row must be missing. Sentences go
# before frames, and rows with many missing words before others, so that few rows cover all words.
_PASSES: Final = (
    (False, 4), (False, 3), (False, 2), (True, 3), (True, 2), (False, 1), (True, 1)
)  # fmt: skip


def frequent_words(scowl: Path) -> dict[str, int]:
    """Return the words of SCOWL's small lists, and how often each should come.

    Raises OSError if the folder has no lists.
    """
    wanted: dict[str, int] = {}
    for size, times in FREQUENT.items():
        for spelling in _SPELLINGS:
            for word in (scowl / f"{spelling}-words.{size}").read_text(encoding="latin-1").split():
                if re.fullmatch("[a-z]{2,}", word):
                    wanted.setdefault(word, times)
    return wanted


def ordered(phrases: Iterable[Phrase], wanted: Mapping[str, int], seed: int) -> list[Phrase]:
    """Return all phrases, those first that a session needs to hear each wanted word so often.

    Args:
        phrases: phrases in any order, which makes no difference.
        wanted: how often each word should come. One that should come OFTEN should also come by itself.
        seed: seed of the order.
    """
    random_ = random.Random(seed)
    shuffled = sorted(phrases, key=lambda one: (one.label, one.source, one.accent, one.phonemes))
    random_.shuffle(shuffled)
    missing = Counter(wanted)
    missing.update({_alone(word): 1 for word, times in wanted.items() if times >= OFTEN})
    soon = {unit for unit in missing if wanted.get(unit, OFTEN) >= _SOON}
    front: list[Phrase] = []
    rest: list[Phrase] = []
    for phrase in shuffled:
        drawn = random_.random() < _ORDINARY.get(phrase.source, 0.0)
        if drawn and len(front) < _ORDINARY_ROWS:
            front.append(phrase)
            missing.subtract(_units(phrase.label))
        else:
            rest.append(phrase)
    covering, rest = _covering(rest, missing, soon)
    front += covering
    # The first rows are held out, and a session may be short: both should have rows of all kinds.
    random_.shuffle(front)
    covering, rest = _covering(rest, missing, missing.keys())
    random_.shuffle(covering)
    return front + covering + rest


def share_met(phrases: Iterable[Phrase], wanted: Mapping[str, int]) -> float:
    """Return the share of the words that should come soon, and come as often as they should."""
    counts = Counter(word for phrase in phrases for word in phrase.label.split())
    met = [counts[word] >= times for word, times in wanted.items() if times >= _SOON]
    return sum(met) / max(1, len(met))


def _covering(
    phrases: Sequence[Phrase], missing: Counter[str], units: Collection[str]
) -> tuple[list[Phrase], list[Phrase]]:
    """Return the phrases that are needed until no unit is missing, and the others. Updates `missing`."""
    taken: list[Phrase] = []
    for frames, fewest in _PASSES:
        left: list[Phrase] = []
        for phrase in phrases:
            found = _units(phrase.label) if (phrase.source == "word") == frames else []
            if sum(missing[unit] > 0 for unit in set(found) if unit in units) >= fewest:
                missing.subtract(found)
                taken.append(phrase)
            else:
                left.append(phrase)
        phrases = left
    return taken, list(phrases)


def _units(label: str) -> list[str]:
    """Return the words of a label; a single word counts as itself and as a word alone."""
    words = label.split()
    return [*words, _alone(words[0])] if len(words) == 1 else words


def _alone(word: str) -> str:
    return f"{word}."
