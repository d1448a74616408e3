"""Numbers are said as people say them."""

from __future__ import annotations

import pytest

from training.text.spoken_numbers import cardinal, digits, ordinal, year


@pytest.mark.parametrize(
    ("number", "said"),
    [
        (0, "zero"),
        (13, "thirteen"),
        (20, "twenty"),
        (42, "forty two"),
        (100, "one hundred"),
        (305, "three hundred five"),
        (1_000, "one thousand"),
        (12_345, "twelve thousand three hundred forty five"),
        (2_000_001, "two million one"),
        (900_000_009, "nine hundred million nine"),
    ],
)  # fmt: skip
def test_cardinal(number: int, said: str) -> None:
    assert cardinal(number) == said


def test_cardinal_with_and() -> None:
    assert cardinal(105, with_and=True) == "one hundred and five"
    assert cardinal(300_120, with_and=True) == "three hundred thousand one hundred and twenty"


@pytest.mark.parametrize("number", [-1, 10**9])
def test_out_of_range_is_refused(number: int) -> None:
    with pytest.raises(ValueError, match="is not between"):
        cardinal(number)


@pytest.mark.parametrize(
    ("number", "said"),
    [(1, "first"), (2, "second"), (12, "twelfth"), (13, "thirteenth"), (20, "twentieth"),
     (21, "twenty first"), (30, "thirtieth"),
     (45, "forty fifth"), (100, "one hundredth"), (109, "one hundred ninth")],
)  # fmt: skip
def test_ordinal(number: int, said: str) -> None:
    assert ordinal(number) == said


@pytest.mark.parametrize(
    ("number", "said"),
    [(1900, "nineteen hundred"), (1905, "nineteen oh five"), (1987, "nineteen eighty seven"),
     (2000, "two thousand"), (2006, "two thousand six"), (2012, "twenty twelve"), (1812, "eighteen twelve")],
)  # fmt: skip
def test_year(number: int, said: str) -> None:
    assert year(number) == said


def test_digits() -> None:
    assert digits("12-05") == "one two zero five"
