"""Assigns the words of a transcript to its parts.

Finals of utterances join to the transcript, so a word is assigned by the length of the text before it. Its
times would not do: a model emits a word later than it was spoken, and the last word may begin after the end
of its utterance.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from typing import Final

from common.messages import Word

# Characters that may be in a text and in none of its words, or the other way round: spaces, and late marks.
_UNCERTAIN: Final = re.compile(r"[\s.,?!;:…。，、？！；：]+")


def words_of_texts(words: Iterable[Word], texts: Sequence[str]) -> list[list[Word]]:
    """Return one list of words for each text, followed by a list of the words after all texts.

    words: in order, from the first word of the first text.   texts: consecutive parts of the transcript.
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
