"""Prompts: a list is phrases, a sentence is not, and nothing in one is an error."""

from __future__ import annotations

import pytest

from common.phrases import MAX_PHRASES, MAX_PHRASES_BYTES, Phrase, encode_phrases, parse_phrases
from ingress.dialects.openai.prompt import phrases_of


@pytest.mark.parametrize(
    ("prompt", "phrases"),
    [
        (None, ()),
        ("", ()),
        (" ,; .\n", ()),
        ("Zyrtec", ("Zyrtec",)),
        ("ZyntriQix, Digique Plus, VortiQore V8.", ("ZyntriQix", "Digique Plus", "VortiQore V8")),
        ('Glossary: Jane  Doe;\n"Zyrtec"\nZyrtec', ("Jane Doe", "Zyrtec")),
        ("one two three four, five", ("one two three four", "five")),
        ("one two three four five, six", ()),
        ("A lecture on the developments around Redis, Valkey and others.", ()),
        ("a\x00b, " + "x" * 201 + ", Zyrtec", ("Zyrtec",)),
        ("kept: a, b: c", ("a", "b: c")),
    ],
)
def test_a_prompt_that_is_a_list_is_optional_phrases(prompt: str | None, phrases: tuple[str, ...]) -> None:
    assert phrases_of(prompt) == tuple(Phrase(text, optional=True) for text in phrases)


def test_keywords_come_first_and_once() -> None:
    keywords = (Phrase("Zyrtec"), Phrase("Jane Doe"))
    assert phrases_of("EKG, Zyrtec", keywords) == (*keywords, Phrase("EKG", optional=True))


@pytest.mark.parametrize(
    ("keywords", "prompt"),
    [
        ((), ",".join(map(str, range(3 * MAX_PHRASES)))),
        (tuple(map(str, range(MAX_PHRASES - 1))), "a,b,c"),
        ((), ",".join(str(number) * 50 for number in range(400))),
        (("x" * 200,) * 81, ",".join("äöü" + str(number) for number in range(100))),
    ],
)
def test_what_is_beyond_the_bounds_is_left_out(keywords: tuple[str, ...], prompt: str) -> None:
    phrases = phrases_of(prompt, tuple(map(Phrase, keywords)))
    assert len(phrases) > len(keywords)
    # The bounds of a stream hold for them all.
    assert parse_phrases([{"text": one.text, "optional": one.optional} for one in phrases]) == phrases
    assert len(phrases) == MAX_PHRASES or sum(len(one.text.encode()) for one in phrases) > (
        MAX_PHRASES_BYTES - 200
    )
    assert encode_phrases(phrases)
