"""Numbers in words, in the model's spelling: lower case, no hyphens, no digits."""

from __future__ import annotations

from typing import Final

ONES: Final = (
    "zero one two three four five six seven eight nine ten eleven twelve thirteen fourteen fifteen sixteen "
    "seventeen eighteen nineteen"
).split()
_TENS: Final = "twenty thirty forty fifty sixty seventy eighty ninety".split()
_IRREGULAR_ORDINALS: Final = {
    "one": "first", "two": "second", "three": "third", "five": "fifth", "eight": "eighth", "nine": "ninth",
    "twelve": "twelfth",
}  # fmt: skip


def cardinal(number: int, *, with_and: bool = False) -> str:
    """Return a number from 0 to 999,999,999; `with_and` says "one hundred and five"."""
    if not 0 <= number < 10**9:
        raise ValueError(f"{number} is not between 0 and 999,999,999")
    if number < 20:
        return ONES[number]
    if number < 100:
        ten, rest = divmod(number, 10)
        return _joined(_TENS[ten - 2], rest and ONES[rest])
    for size, name in ((10**6, "million"), (1000, "thousand"), (100, "hundred")):
        if number >= size:
            count, rest = divmod(number, size)
            link = " and" if with_and and size == 100 and rest else ""
            tail = rest and cardinal(rest, with_and=with_and)
            return _joined(f"{cardinal(count, with_and=with_and)} {name}{link}", tail)
    raise AssertionError(number)


def ordinal(number: int) -> str:
    """Return the ordinal of a number from 1 on: "twenty first"."""
    head, _, last = cardinal(number).rpartition(" ")
    if last in _IRREGULAR_ORDINALS:
        last = _IRREGULAR_ORDINALS[last]
    elif last.endswith("y"):
        last = last[:-1] + "ieth"
    else:
        last += "th"
    return f"{head} {last}".strip()


def year(number: int) -> str:
    """Return a year from 1100 to 2099 as it is read: "nineteen oh five", "two thousand six"."""
    if 2000 <= number < 2010:
        return _joined("two thousand", number % 10 and ONES[number % 10])
    century, rest = divmod(number, 100)
    if rest == 0:
        return f"{cardinal(century)} hundred"
    return f"{cardinal(century)} {'oh ' if rest < 10 else ''}{cardinal(rest)}"


def digits(text: str) -> str:
    """Return each digit of a string as a word; other characters are left out."""
    return " ".join(ONES[int(one)] for one in text if one.isdigit())


def _joined(head: str, tail: str | int) -> str:
    return f"{head} {tail}" if tail else head
