"""Phrases as the token sequences that a model may write them in."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import chain
from typing import Protocol

from common.errors import shown
from common.phrases import DEFAULT_BOOST, Phrase
from gpu_worker.boosting.tree import PhraseTree
from gpu_worker.engine.interface import UnsupportedOption


class Speller(Protocol):
    """What is asked of a tokenizer."""

    @property
    def vocab_size(self) -> int:
        """Tokens, without the blank."""

    def encode(self, texts: Sequence[str]) -> list[tuple[int, ...] | None]:
        """Tokens of each text; None where the vocabulary cannot write it."""


def spellings(speller: Speller, phrases: Sequence[Phrase]) -> list[list[tuple[int, ...]]]:
    """Token sequences of each phrase, in whatever case the model writes it: another case is other tokens.

    An optional phrase that the model's pieces cannot write has none.  Raises UnsupportedOption, which names
    the phrase, for any other.
    """
    texts = [phrase.text for phrase in phrases]
    found = _encoded(speller, [(text, text.lower(), _capital(text), _titled(text)) for text in texts])
    for number, phrase in enumerate(phrases):
        if not found[number]:
            (found[number],) = _encoded(speller, [(phrase.text.upper(),)])
        if not found[number] and not phrase.optional:
            raise UnsupportedOption(
                f"Option 'phrases': this model cannot write {shown(phrase.text)}; its pieces lack a character"
                " of it."
            )
    return found


def _capital(text: str) -> str:
    return text[:1].upper() + text[1:].lower()


def _titled(text: str) -> str:
    return " ".join(map(_capital, text.split(" ")))


def _encoded(speller: Speller, cases: Sequence[tuple[str, ...]]) -> list[list[tuple[int, ...]]]:
    """Return the different token sequences of the cases of each phrase, in their order."""
    texts = list(dict.fromkeys(chain.from_iterable(cases)))
    tokens_of = dict(zip(texts, speller.encode(texts), strict=True))
    return [list(dict.fromkeys(filter(None, map(tokens_of.get, texts)))) for texts in cases]


def tree_of(speller: Speller, phrases: Sequence[Phrase]) -> PhraseTree:
    """Return the tree of a list.  Raises UnsupportedOption for a phrase that the model cannot write."""
    return PhraseTree(_scored(speller, phrases), speller.vocab_size)


def _scored(speller: Speller, phrases: Sequence[Phrase]) -> Iterator[tuple[tuple[int, ...], float]]:
    for phrase, spelt in zip(phrases, spellings(speller, phrases), strict=True):
        boost = DEFAULT_BOOST if phrase.boost is None else phrase.boost
        if boost:
            for tokens in spelt:
                yield tokens, boost
