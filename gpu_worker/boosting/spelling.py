"""Phrases as the token sequences that a model may write them in."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from typing import Final, Protocol

from common.errors import shown
from common.phrases import Phrase
from gpu_worker.boosting.tree import PhraseTree
from gpu_worker.engine.interface import UnsupportedOption

DEFAULT_BOOST: Final = 0.5


class Speller(Protocol):
    """What is asked of a tokenizer."""

    @property
    def vocab_size(self) -> int:
        """Tokens, without the blank."""

    def encode(self, text: str) -> tuple[int, ...] | None:
        """Tokens of a text; None where the vocabulary cannot write it."""


def spellings(speller: Speller, text: str) -> list[tuple[int, ...]]:
    """Token sequences of a phrase, in whatever case the model writes it: another case is other tokens.

    Raises UnsupportedOption, which names the phrase, where the model's pieces can write it in no case.
    """
    found = _encoded(speller, (text, text.lower(), text[:1].upper() + text[1:].lower(), _titled(text)))
    found = found or _encoded(speller, (text.upper(),))
    if not found:
        raise UnsupportedOption(
            f"Option 'phrases': this model cannot write {shown(text)}; its pieces lack a character of it."
        )
    return found


def _titled(text: str) -> str:
    return " ".join(word[:1].upper() + word[1:].lower() for word in text.split(" "))


def _encoded(speller: Speller, texts: Iterable[str]) -> list[tuple[int, ...]]:
    encoded = (speller.encode(text) for text in dict.fromkeys(texts))
    return list(dict.fromkeys(tokens for tokens in encoded if tokens))


def tree_of(speller: Speller, phrases: Sequence[Phrase]) -> PhraseTree:
    """Return the tree of a list.  Raises UnsupportedOption for a phrase that the model cannot write."""
    return PhraseTree(_scored(speller, phrases), speller.vocab_size)


def _scored(speller: Speller, phrases: Sequence[Phrase]) -> Iterator[tuple[tuple[int, ...], float]]:
    for phrase in phrases:
        for tokens in spellings(speller, phrase.text):
            boost = DEFAULT_BOOST if phrase.boost is None else phrase.boost
            if boost:
                yield tokens, boost
