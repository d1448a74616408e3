"""The boosting tree by hand: scores, what is given back, and where a token leads."""

from __future__ import annotations

import gc
from collections.abc import Sequence
from math import log

import numpy as np
import pytest

from common.phrases import Phrase
from gpu_worker.boosting.spelling import spellings, tree_of
from gpu_worker.boosting.tree import PhraseTree
from gpu_worker.engine.interface import UnsupportedOption
from tests.oracle.models import tiny

NEW, YORK, TIMES, OTHER = 1, 2, 3, 0


def test_scores_grow_with_depth_and_are_given_back_when_a_phrase_breaks_off() -> None:
    tree = PhraseTree([([NEW, YORK, TIMES], 1.0)], 4)
    assert tree.scores(0).tolist() == [0, 1, 0, 0]
    new = tree.following(0, NEW)
    second = 2 + log(2)
    assert tree.scores(new) == pytest.approx([-1, 1 - 1, second, -1])
    york = tree.following(new, YORK)
    third = 2 + log(3)
    assert tree.scores(york) == pytest.approx([-1 - second, -second, -1 - second, third])
    whole = tree.following(york, TIMES)
    # A whole phrase keeps what it was given.
    assert tree.scores(whole).tolist() == [0, 1, 0, 0]
    assert [tree.following(state, OTHER) for state in (0, new, york, whole)] == [0, 0, 0, 0]
    assert tree.following(york, NEW) == new


def test_a_phrase_within_another_goes_on_where_the_longer_one_breaks_off() -> None:
    tree = PhraseTree([([NEW, YORK, TIMES], 1.0), ([YORK, OTHER], 1.0)], 4)
    york_of_new = tree.following(tree.following(0, NEW), YORK)
    york = tree.following(0, YORK)
    assert york_of_new != york
    assert tree.following(york_of_new, OTHER) == tree.following(york, OTHER)
    given_back = 1 - (1 + 2 + log(2))
    assert tree.scores(york_of_new)[OTHER] == pytest.approx(given_back + 2 + log(2))


def test_shared_beginnings_keep_the_higher_boost() -> None:
    tree = PhraseTree([([NEW, YORK], 1.0), ([NEW, TIMES], 5.0), ([NEW], 2.0)], 4)
    assert tree.scores(0)[NEW] == 5.0
    assert tree.scores(tree.following(0, NEW))[[YORK, TIMES]] == pytest.approx([2 + log(2), 10 + log(2)])
    assert tree.scores(tree.following(0, NEW))[OTHER] == 0, "what ends a phrase gives nothing back"


@pytest.mark.parametrize(("num_tokens", "most_rows"), [(1_024, 256), (16_384, 16), (1 << 19, 1)])
def test_cached_scores_are_bounded_whatever_the_vocabulary(num_tokens: int, most_rows: int) -> None:
    tree = PhraseTree([(range(400), 1.0)], num_tokens)
    states = list(range(300)) if num_tokens < 100_000 else [0, 1, 2]
    rows = [tree.scores(state).copy() for state in states]
    assert len(tree._rows) == most_rows
    assert all(np.array_equal(tree.scores(state), row) for state, row in zip(states, rows, strict=True))


def test_no_phrases_are_a_root_alone() -> None:
    tree = PhraseTree([], 4)
    assert tree.num_nodes == 1
    assert tree.scores(0).tolist() == [0] * 4
    assert [tree.following(0, token) for token in range(4)] == [0] * 4
    assert len(tree.words) == 2 * 4 + 4, "the root's table, and one node"


def test_random_trees_equal_a_walk_by_the_definition() -> None:
    rng = np.random.default_rng(0)
    for _ in range(20):
        phrases = [rng.integers(0, 4, rng.integers(1, 6)).tolist() for _ in range(8)]
        tree = PhraseTree(((tokens, 1.0) for tokens in phrases), 4)
        node = 0
        said: list[int] = []
        beginnings = {tuple(tokens[:end]) for tokens in phrases for end in range(len(tokens) + 1)}
        states: dict[tuple[int, ...], int] = {}
        for token in rng.integers(0, 4, 200).tolist():
            node = tree.following(node, token)
            said.append(token)
            # The state is the longest end of what was said that begins a phrase.
            longest = next(tuple(said[at:]) for at in range(len(said) + 1) if tuple(said[at:]) in beginnings)
            assert states.setdefault(longest, node) == node


def test_building_leaves_nothing_to_the_collector_of_cycles() -> None:
    rng = np.random.default_rng(0)
    phrases = [(rng.integers(0, 50, 6).tolist(), 1.0) for _ in range(100)]
    PhraseTree(phrases, 50)  # whatever only a first call leaves
    gc.collect()
    assert PhraseTree(phrases, 50).num_nodes > 300
    # A node of a cycle would be at least one object; other threads of the process may leave a few.
    assert gc.collect() < 100


def test_phrases_are_written_in_the_case_that_the_model_has() -> None:
    tokenizer = tiny().tokenizer
    mixed, small, upper = spellings(
        tokenizer, [Phrase("Hello World"), Phrase("hello world"), Phrase("HELLO")]
    )
    assert mixed == small
    assert [tokenizer.decode(one) for one in upper] == ["hello"]


def test_a_model_with_capitals_gets_every_case() -> None:
    class Letters:
        vocab_size = 256

        def encode(self, texts: Sequence[str]) -> list[tuple[int, ...] | None]:
            return [
                tuple(map(ord, text)) if text.isascii() and not text.isdigit() else None for text in texts
            ]

    one, other = spellings(Letters(), [Phrase("new yorK"), Phrase("a")])
    written = ["".join(map(chr, tokens)) for tokens in one]
    assert written == ["new yorK", "new york", "New york", "New York"]
    assert other == [(ord("a"),), (ord("A"),)]
    with pytest.raises(UnsupportedOption, match='cannot write "42"'):
        tree_of(Letters(), (Phrase("a"), Phrase("42")))
    without = tree_of(Letters(), (Phrase("a"), Phrase("42", optional=True)))
    assert without.words.tolist() == tree_of(Letters(), (Phrase("a"),)).words.tolist()
    nothing = tree_of(Letters(), (Phrase("42", optional=True),))
    assert nothing.words.tolist() == tree_of(Letters(), ()).words.tolist()


def test_marks_cannot_be_phrases() -> None:
    with pytest.raises(UnsupportedOption, match="<EOU>"):
        spellings(tiny().tokenizer, [Phrase("<EOU>")])


def test_a_boost_of_nought_is_no_phrase() -> None:
    assert tree_of(tiny().tokenizer, (Phrase("hello", 0.0),)).num_nodes == 1
    assert tree_of(tiny().tokenizer, (Phrase("hello"),)).num_nodes > 1
