"""What a session speaks has the frequent words often enough, and still is a mixture of all kinds."""

from __future__ import annotations

import random
from collections import Counter
from pathlib import Path

import pytest

from training.text import coverage
from training.text.coverage import OFTEN, _covering, frequent_words, ordered, share_met
from training.text.phonemes import Phrase


def phrase(label: str, source: str = "chat") -> Phrase:
    return Phrase(label, source, "us", "sˈA")


def corpus() -> tuple[list[Phrase], dict[str, int]]:
    """4,000 sentences of common words; a fortieth has one of ten rarer words, a few are one of them alone."""
    random_ = random.Random(3)
    rare = [f"rare{letter}" for letter in "abcdefghij"]
    usual = ["we", "go", "to", "see", "the", "sea"]
    phrases = [phrase(" ".join(random_.choices(usual, k=5))) for _ in range(3_800)]
    phrases += [phrase(f"the {word} is here") for word in rare for _ in range(20)]
    phrases += [phrase(word, "word") for word in rare]
    phrases += [phrase(f"the {word} and {other}") for word in rare for other in rare if word != other]
    random_.shuffle(phrases)
    return phrases, {**dict.fromkeys(rare, OFTEN), "unheard": OFTEN}


def test_frequent_words_come_often_in_front(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(coverage, "_ORDINARY_ROWS", 500)
    phrases, wanted = corpus()
    rows = ordered(phrases, wanted, 1)
    assert Counter(rows) == Counter(phrases)
    front = rows[:800]
    counts = Counter(word for one in front for word in one.label.split())
    assert all(counts[word] >= OFTEN for word in wanted if word != "unheard")
    before = share_met(phrases[:800], wanted)
    # One word is nowhere, so it is not met.
    assert before < 0.2 < share_met(front, wanted) == pytest.approx(10 / 11)
    assert {one.label for one in front if " " not in one.label} == set(wanted) - {"unheard"}


def test_rows_in_front_are_a_mixture(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(coverage, "_ORDINARY_ROWS", 500)
    phrases, wanted = corpus()
    rows = ordered(phrases, wanted, 1)
    usual = [sum("rare" not in one.label for one in rows[start : start + 200]) for start in (0, 200, 400)]
    assert min(usual) > 100
    assert max(usual) < 190


def test_frames_come_only_where_sentences_lack_a_word() -> None:
    sentences = [phrase(f"we found a badger {k}") for k in range(20)]
    frames = [phrase(f"badger and otter {k}", "word") for k in range(30)]
    taken, left = _covering(frames + sentences, Counter({"badger": 15, "eel": 3}), ["badger", "eel"])
    assert Counter(one.source for one in taken) == {"chat": 15}
    assert Counter(taken + left) == Counter(frames + sentences)
    taken, _ = _covering(frames + sentences, Counter({"badger": 15, "otter": 12}), ["badger", "otter"])
    # A frame with both words saves sentences.
    assert Counter(one.source for one in taken) == {"word": 12, "chat": 3}


def test_the_order_depends_on_the_seed_alone() -> None:
    phrases, wanted = corpus()
    assert ordered(phrases, wanted, 1) == ordered(phrases[::-1], wanted, 1) != ordered(phrases, wanted, 2)


def test_words_of_smaller_lists_should_come_more_often(tmp_path: Path) -> None:
    lists = {10: "the\nit's\nA\ntwo\n", 20: "colour\nItaly\n", 35: "two\nzebra\n"}
    for size, text in lists.items():
        (tmp_path / f"english-words.{size}").write_text(text, encoding="latin-1")
        (tmp_path / f"american-words.{size}").write_text("caf\xe9\n", encoding="latin-1")
    assert frequent_words(tmp_path) == {"the": 20, "two": 20, "colour": 10, "zebra": 2}
    with pytest.raises(OSError, match="english-words"):
        frequent_words(tmp_path / "none")
