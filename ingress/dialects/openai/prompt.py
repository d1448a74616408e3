"""Phrases of a prompt: clients send a sentence or a list, and a list is taken as phrases."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Final

from common.phrases import MAX_PHRASE_CHARS, MAX_PHRASES, MAX_PHRASES_BYTES, Phrase

# A part with more words is taken for a part of a sentence.
MAX_WORDS: Final = 4
_BETWEEN: Final = re.compile(r"[,;\n]")
_AROUND: Final = " \t\r.!?\"'“”"


def phrases_of(prompt: str | None, keywords: Sequence[Phrase] = ()) -> tuple[Phrase, ...]:
    """Return the keywords, followed by the phrases of a prompt that is a list.

    A list has commas, semicolons or line breaks between its parts, each of `MAX_WORDS` words at most, and
    may have a heading with a colon. Any other prompt is ignored. A prompt is never refused: its phrases are
    optional, and phrases beyond the bounds of a stream are left out.
    """
    phrases = list(keywords)
    known = {phrase.text for phrase in phrases}
    room = MAX_PHRASES_BYTES - sum(len(phrase.text.encode()) for phrase in keywords)
    for text in _parts(prompt or ""):
        room -= len(text.encode())
        if room < 0 or len(phrases) >= MAX_PHRASES:
            break
        if text not in known:
            known.add(text)
            phrases.append(Phrase(text, optional=True))
    return tuple(phrases)


def _parts(prompt: str) -> list[str]:
    heading, colon, listed = prompt.partition(":")
    if colon and not _BETWEEN.search(heading):
        prompt = listed
    parts = [" ".join(part.strip(_AROUND).split()) for part in _BETWEEN.split(prompt)]
    parts = [part for part in parts if part]
    if any(part.count(" ") >= MAX_WORDS for part in parts):
        return []
    return [part for part in parts if part.isprintable() and len(part) <= MAX_PHRASE_CHARS]
