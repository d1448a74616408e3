"""Spells phrases as the token sequences with which a model may write them."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import chain
from typing import Protocol

from common.errors import shown
from common.phrases import DEFAULT_BOOST, Phrase
from gpu_worker.boosting.tree import PhraseTree
from gpu_worker.engine.interface import UnsupportedOption


class Speller(Protocol):
    """The part of a tokenizer that spelling needs."""

    @property
    def vocab_size(self) -> int:
        """Number of tokens, without the blank."""

    def encode(self, texts: Sequence[str]) -> list[tuple[int, ...] | None]:
        """Return the tokens of each text; None where the vocabulary cannot write it."""


def spellings(speller: Speller, phrases: Sequence[Phrase]) -> list[list[tuple[int, ...]]]:
    """Return the token sequences of each phrase, one for each case in which the model may write it.

    An optional phrase that the model's pieces cannot write has none. Raises UnsupportedOption, which names
    the phrase, for any other such phrase.
    """
    texts = [phrase.text for phrase in phrases]
    found = _encoded(speller, list(map(_cases, texts)))
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


def _cases(text: str) -> tuple[str, ...]:
    cases = text, text.lower(), _capital(text)
    return (*cases, " ".join(map(_capital, text.split(" ")))) if " " in text else cases


def _encoded(speller: Speller, cases: Sequence[tuple[str, ...]]) -> list[list[tuple[int, ...]]]:
    """Return the different token sequences of the cases of each phrase, in their order."""
    texts = list(dict.fromkeys(chain.from_iterable(cases)))
    tokens_of = dict(zip(texts, speller.encode(texts), strict=True))
    return [list(dict.fromkeys(filter(None, map(tokens_of.get, texts)))) for texts in cases]


def tree_of(speller: Speller, phrases: Sequence[Phrase]) -> PhraseTree:
    """Return the tree of a list of phrases. Raises UnsupportedOption for one that the model cannot write."""
    return PhraseTree(_scored(speller, phrases), speller.vocab_size)


def _scored(speller: Speller, phrases: Sequence[Phrase]) -> Iterator[tuple[tuple[int, ...], float]]:
    for phrase, spelt in zip(phrases, spellings(speller, phrases), strict=True):
        boost = DEFAULT_BOOST if phrase.boost is None else phrase.boost
        if boost:
            for tokens in spelt:
                yield tokens, boost
