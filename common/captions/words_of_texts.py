"""Which words of a transcript stand in which of its parts.

Finals of utterances join to the transcript, so words are told apart by how much of the text stands before
them. Their times would not do: a model emits a word later than it was spoken, and the last one may begin
behind the end of its utterance.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from typing import Final

from common.messages import Word

# What may stand in a text and in none of its words, or the other way round: spaces, and marks that come late.
_UNCERTAIN: Final = re.compile(r"[\s.,?!;:…。，、？！；：]+")


def words_of_texts(words: Iterable[Word], texts: Sequence[str]) -> list[list[Word]]:
    """Return the words of each text, in one list for each, and behind them a list of those beyond all texts.

    words: in order, from the first of the first text.   texts: neighbours.
    """
    found: list[list[Word]] = [[] for _ in range(len(texts) + 1)]
    at, before, end = 0, 0, _size(texts[0]) if texts else 0
    for word in words:
        while at < len(texts) and before >= end:
            at += 1
            end += _size(texts[at]) if at < len(texts) else 0
        found[at].append(word)
        before += _size(word.word)
    return found


def _size(text: str) -> int:
    return len(_UNCERTAIN.sub("", text))
