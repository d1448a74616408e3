"""Sentences of everyday speech to machines and over telephones, from templates.

`templates.txt` has a template on each line. `[a|b|c]` takes one of its alternatives, which may be empty and
may hold others; `{name}` takes a word of the list NAME in `words.yaml`, or the text from the method of that
name here. Lines under a heading `# name: weight` are drawn with that weight, all lines of a heading alike.
"""

from __future__ import annotations

import random
import re
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Final

import yaml

from training.text.spoken_numbers import cardinal, digits, ordinal, year

_FOLDER: Final = Path(__file__).parent
_HEADING: Final = re.compile(r"# [^:]+: (\d+)")
_CHOICE: Final = re.compile(r"\[([^\[\]]*)\]")
_SLOT: Final = re.compile(r"\{(\w+)(?: (\d+) (\d+))?\}")


class Templates:
    """Draws sentences; equal seeds draw equal sentences."""

    def __init__(self, seed: int) -> None:
        self._random = random.Random(seed)
        text = (_FOLDER / "words.yaml").read_text(encoding="utf-8")
        self.words: Mapping[str, list[str]] = {
            name: [one.strip() for one in entries.split(",")]
            for name, entries in yaml.safe_load(text).items()
        }
        self._templates: list[str] = []
        self._weights: list[float] = []
        for weight, group in _groups((_FOLDER / "templates.txt").read_text(encoding="utf-8")):
            self._templates += group
            self._weights += [weight / len(group)] * len(group)
        self._makers: dict[str, Callable[[], str]] = {
            "phone": self._phone, "date": self._date, "clock": self._clock, "money": self._money,
            "letters": self._letters, "spelt": self._spelt,
        }  # fmt: skip

    def sentence(self) -> str:
        """Return one sentence in its written form, without digits."""
        template = self._random.choices(self._templates, self._weights)[0]
        return self._filled(template)

    def _filled(self, template: str) -> str:
        while match := _CHOICE.search(template):
            choice = self._random.choice(match[1].split("|"))
            template = template[: match.start()] + choice + template[match.end() :]
        text = _SLOT.sub(self._slot, template)
        return re.sub(r"\s+", " ", text).strip()

    def _slot(self, match: re.Match[str]) -> str:
        name, low, high = match[1], match[2], match[3]
        if name == "number":
            value = self._random.randint(int(low), int(high))
            return cardinal(value, with_and=self._random.random() < 0.4)
        if name == "ordinal":
            return ordinal(self._random.randint(int(low), int(high)))
        if name == "digits":
            return self._digits(self._random.randint(int(low), int(high)))
        if name in self._makers:
            return self._makers[name]()
        return self._random.choice(self.words[name])

    def _digits(self, count: int) -> str:
        spoken = digits("".join(self._random.choice("0123456789") for _ in range(count)))
        return spoken.replace("zero", "oh") if self._random.random() < 0.5 else spoken

    def _phone(self) -> str:
        groups = self._random.choice([(3, 3, 4), (3, 4), (4, 3, 3), (5, 6)])
        return self._random.choice([", ", " "]).join(self._digits(count) for count in groups)

    def _date(self) -> str:
        month, day = self._random.choice(self.words["month"]), ordinal(self._random.randint(1, 31))
        weekday = self._random.choice(self.words["weekday"])
        numbers = [range(1900, 2035), range(2000, 2035), range(1700, 1900)]
        when = year(self._random.choice(self._random.choice(numbers)))
        return self._random.choice([
            f"{month} {day}", f"the {day} of {month}", f"{month} {day}, {when}",
            f"{weekday}, {month} {day}", f"{weekday} the {day}",
        ])  # fmt: skip

    def _clock(self) -> str:
        hour = cardinal(self._random.randint(1, 12))
        minute = self._random.choice([0, 0, 15, 30, 45, self._random.randint(1, 59)])
        if minute == 0:
            time = self._random.choice([hour, f"{hour} o'clock"])
        else:
            time = f"{hour} {'oh ' if minute < 10 else ''}{cardinal(minute)}"
        part = self._random.choice(["in the morning", "in the afternoon", "in the evening", "at night"])
        past = self._random.choice(["half past", "quarter to", "quarter past", "ten to", "five past"])
        return self._random.choice(
            [time, f"{time} {part}", f"{time} A M", f"{time} P M", f"{past} {hour}", "noon", "midnight"]
        )

    def _money(self) -> str:
        whole = self._random.choice([self._random.randint(1, 99), self._random.randint(1, 20_000)])
        unit, small = self._random.choice(
            [("dollars", "cents")] * 4 + [("pounds", "pence"), ("euros", "cents")]
        )
        cents = self._random.randint(1, 99)
        forms = [f"{cardinal(whole)} {unit}", f"{cardinal(whole)} {unit} and {cardinal(cents)} {small}"]
        if whole < 100 and cents > 9:
            forms.append(f"{cardinal(whole)} {cardinal(cents)}")
        return self._random.choice(forms)

    def _letters(self) -> str:
        return " ".join(self._random.choices("ABCDEFGHIJKLMNOPQRSTUVWXYZ", k=self._random.randint(1, 5)))

    def _spelt(self) -> str:
        return " ".join(self._random.choice(self.words["last_name"]).upper())


def _groups(text: str) -> Iterator[tuple[float, list[str]]]:
    """Yield the weight and the lines of each heading."""
    parts = _HEADING.split(text)
    for weight, block in zip(parts[1::2], parts[2::2], strict=True):
        yield float(weight), [line for line in block.splitlines() if line.strip()]
