"""Written sentences become labels, or are dropped where nobody can say how they are read."""

from __future__ import annotations

import pytest

from training.text.labels import MAX_WORDS, certain_label, label, repaired, sentences


@pytest.mark.parametrize(
    ("written", "expected"),
    [
        ("Hello there, Mary-Jane!", "hello there mary jane"),
        ("‘It’s’ the boys' ball", "it's the boys' ball"),
        ("get 'em 'now'", "get 'em now"),
        ("O'Neill's AND/OR", "o'neill's and or"),
    ],
)
def test_label(written: str, expected: str) -> None:
    assert label(written) == expected


@pytest.mark.parametrize(
    "written",
    [
        "I have 3 cats",
        "it costs $5",
        "Mr. Smith is here",
        "visit example.com",
        "the NASA launch",
        "a :) smile",
        "see e.g. this",
        "plan b",
        "lol that is funny",
        "x",
        "",
        " ".join(["word"] * (MAX_WORDS + 1)),
    ],
)
def test_uncertain_sentences_are_dropped(written: str) -> None:
    assert certain_label(written) is None


def test_certain_sentences_stay() -> None:
    assert certain_label("I'm OK, thanks. A nice day!") == "i'm ok thanks a nice day"
    assert certain_label(" ".join(["word"] * MAX_WORDS)) is not None


@pytest.mark.parametrize(
    ("written", "expected"),
    [
        ("im sure you dont mind", "I'm sure you don't mind"),
        ("that was goooood haha", "that was good"),
        ("born in 1987, i have 3 cats", "born in nineteen eighty seven, i have three cats"),
        ("my 21st birthday", "my twenty first birthday"),
        ("50% off :) ...", "fifty percent off."),
        ("at 10:30 on 3/4", "at 10:30 on 3/4"),
        ("alot of rock & roll!!!", "a lot of rock  and  roll!"),
        ("WONT is a name", "WONT is a name"),
    ],
)
def test_repaired(written: str, expected: str) -> None:
    assert repaired(written) == expected


def test_sentences() -> None:
    assert list(sentences("One.  Two!\nThree? four")) == ["One.", "Two!", "Three?", "four"]
