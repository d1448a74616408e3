"""Word error rates against figures worked out by hand."""

from __future__ import annotations

import pytest

from parakeet.check.word_errors import word_errors


@pytest.mark.parametrize(
    ("reference", "hypothesis", "errors"),
    [
        ("go forward ten meters", "Go forward, ten meters.", 0),
        ("go forward ten meters", "", 4),
        ("go forward ten meters", "go forward meters", 1),
        ("go forward ten meters", "go forward tin meters", 1),
        ("go forward ten meters", "oh go forward ten meters", 1),
        ("go forward ten meters", "forward go ten meters", 2),
        ("a b c d e f", "b c x e f g", 3),
        ("don't", "don’t", 0),
        ("", "", 0),
        ("", "two words", 2),
    ],
)
def test_errors_are_the_fewest_changes(reference: str, hypothesis: str, errors: int) -> None:
    assert word_errors(reference, hypothesis)[0] == errors


def test_the_words_of_the_reference_are_counted_beside_the_errors() -> None:
    assert word_errors("go forward ten meters", "go forward meters") == (1, 4)
    assert word_errors("one", "one two three") == (2, 1)
