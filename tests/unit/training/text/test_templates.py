"""Templates make sentences without holes, digits or leftovers."""

from __future__ import annotations

import re

from training.text.labels import label
from training.text.templates import Templates


def test_sentences_are_whole() -> None:
    templates = Templates(1)
    drawn = [templates.sentence() for _ in range(5_000)]
    for sentence in drawn:
        assert re.fullmatch(r"[A-Za-z' ,]+", sentence), sentence
        assert "  " not in sentence
        assert label(sentence)
    assert len(set(drawn)) > 3_500
    single = sum(len(label(sentence).split()) == 1 for sentence in drawn)
    assert 0.08 < single / len(drawn) < 0.25


def test_the_same_seed_draws_the_same() -> None:
    one, other, third = Templates(4), Templates(4), Templates(5)
    drawn = [[t.sentence() for _ in range(20)] for t in (one, other, third)]
    assert drawn[0] == drawn[1] != drawn[2]


def test_every_list_is_used_and_every_slot_has_one() -> None:
    templates = Templates(1)
    text = " ".join(templates._templates)
    slots = set(re.findall(r"\{(\w+)", text))
    made = set(templates._makers) | {"number", "ordinal", "digits"}
    assert slots - made <= set(templates.words)
    # Makers take the other lists.
    assert set(templates.words) - slots <= {"month", "weekday", "last_name"}
