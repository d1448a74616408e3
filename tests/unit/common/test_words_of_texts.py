"""Which words stand in which part of a transcript."""

from __future__ import annotations

import pytest

from common.captions.words_of_texts import words_of_texts
from common.messages import Word


def _split(words: str, *texts: str) -> list[str]:
    spoken = [Word(word, 0.0, 0.1, 0.9) for word in words.split()]
    return [" ".join(word.word for word in part) for part in words_of_texts(spoken, texts)]


@pytest.mark.parametrize(
    ("words", "texts", "parts"),
    [
        ("", (), [""]),
        ("a b", (), ["a b"]),
        ("", ("",), ["", ""]),
        ("go forward ten meters", ("go forward", "ten meters"), ["go forward", "ten meters", ""]),
        ("a a a", ("a", "a a"), ["a", "a a", ""]),
        ("a b c", ("a", "", "b"), ["a", "", "b", "c"]),
        ("so. it is", ("so", "it is."), ["so.", "it is", ""]),
        ("so it is", ("so ?!", "it is"), ["so", "it is", ""]),
        ("50 % of it", ("50 %", "of it"), ["50 %", "of it", ""]),
        ("go for ward", ("go forward", "ten"), ["go for ward", "", ""]),
        ("你 好 吗", ("你好。", "吗"), ["你 好", "吗", ""]),
    ],
)
def test_parts(words: str, texts: tuple[str, ...], parts: list[str]) -> None:
    assert _split(words, *texts) == parts
