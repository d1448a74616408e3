"""Samples say what their pieces say, and mark where speech ends."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from training.data.composition import Composer, Composition, End, Sample, fits
from training.data.utterances import RATE, Utterances

EOU = 99
PLAN = Composition()


def utterances(seconds: list[float], tokens: list[int]) -> Utterances:
    """Utterance k consists of tokens k, k, ... and phonemes 10 k."""
    length = np.array([int(one * RATE) for one in seconds])
    return Utterances(
        np.zeros(length.sum(), np.int16),
        np.concatenate([[0], np.cumsum(length)[:-1]]),
        length,
        tuple((index,) * count for index, count in enumerate(tokens)),
        tuple((10 * index,) * count for index, count in enumerate(tokens)),
    )


CORPUS = utterances([0.4, 0.6, 1.0, 2.0, 3.0, 4.0, 6.0, 0.1], [1, 2, 3, 8, 12, 16, 30, 9])


def composer(plan: Composition = PLAN, seed: int = 0) -> Composer:
    return Composer(CORPUS, plan, EOU, 32 * RATE, seed)


def draw(plan: Composition = PLAN, count: int = 600, *, only_short: bool = False) -> list[Sample]:
    one = composer(plan)
    return [one.sample(only_short=only_short) for _ in range(count)]


def test_tokens_are_those_of_the_pieces_with_an_end_mark_at_each_end() -> None:
    for sample in draw():
        spoken = [token for piece in sample.pieces for token in CORPUS.tokens[piece.utterance]]
        assert [token for token in sample.tokens if token != EOU] == spoken
        assert [index for index, token in enumerate(sample.tokens) if token == EOU] == [
            end.target for end in sample.ends
        ]
        assert list(sample.phonemes) == [
            label for piece in sample.pieces for label in CORPUS.phonemes[piece.utterance]
        ]
        # Never two ends without words between them.
        assert all(a != EOU or b != EOU for a, b in zip(sample.tokens, sample.tokens[1:], strict=False))


def test_an_end_stands_where_its_speech_ended() -> None:
    for sample in draw():
        stops = {
            piece.position + int(CORPUS.length[piece.utterance]) - piece.skipped for piece in sample.pieces
        }
        assert {end.position for end in sample.ends} <= stops
        positions = [piece.position for piece in sample.pieces]
        assert positions == sorted(positions)
        assert all(stop <= sample.num_samples for stop in stops)
        for end in sample.ends:
            later = [position for position in positions if position >= end.position]
            assert all(position - end.position >= 0.5 * RATE for position in later)


def test_shares_are_those_of_the_plan() -> None:
    samples = draw(count=4_000)
    spoken = [sample for sample in samples if sample.pieces]
    assert 0.004 < 1 - len(spoken) / len(samples) < 0.025
    assert 0.3 < sum(sample.pieces[0].position == 0 for sample in spoken) / len(spoken) < 0.4
    assert 0.08 < sum(sample.num_samples > 16 * RATE for sample in spoken) / len(spoken) < 0.14
    assert max(sample.num_samples for sample in samples) <= (PLAN.long_s + 4.5) * RATE
    ended = sum(sample.tokens[-1] == EOU for sample in spoken) / len(spoken)
    assert 0.76 < ended < 0.84
    speeds = [sample.speed for sample in samples]
    assert min(speeds) >= PLAN.slowest
    assert max(speeds) <= PLAN.fastest
    assert 0.35 < speeds.count(1.0) / len(speeds) < 0.55


def test_only_an_abrupt_begin_is_cut_and_only_a_little() -> None:
    for sample in draw():
        for number, piece in enumerate(sample.pieces):
            assert piece.skipped == 0 or (number == 0 and piece.position == 0)
            assert piece.skipped <= PLAN.max_skipped_s * RATE
    assert any(piece.skipped for sample in draw() for piece in sample.pieces)


def test_first_phase_has_single_short_sentences() -> None:
    for sample in draw(only_short=True):
        assert len(sample.pieces) == 1
        assert CORPUS.length[sample.pieces[0].utterance] <= 3.5 * RATE


def test_short_words_come_more_often_and_dense_ones_never() -> None:
    plan = replace(PLAN, single=1.0, long=0.0, silent=0.0, short_words=3.0)
    drawn = [sample.pieces[0].utterance for sample in draw(plan, 2_400)]
    counts = [drawn.count(index) for index in range(8)]
    assert counts[7] == 0
    assert 2.5 < counts[0] / counts[4] < 3.5
    assert 0.8 < counts[2] / counts[4] < 1.25


def test_the_same_seed_draws_the_same() -> None:
    one, other, third = composer(seed=5), composer(seed=5), composer(seed=6)
    drawn = [[c.sample(only_short=False) for _ in range(20)] for c in (one, other, third)]
    assert drawn[0] == drawn[1] != drawn[2]


def test_speed_makes_a_long_sample_fit() -> None:
    one = Composer(CORPUS, replace(PLAN, long=1.0, silent=0.0), EOU, 20 * RATE, 0)
    for _ in range(100):
        sample = one.sample(only_short=False)
        assert sample.num_samples / sample.speed <= 20 * RATE + 1


def test_a_corpus_that_cannot_be_aligned_is_refused() -> None:
    assert fits(1, 0)
    assert not fits(9, RATE // 10)
    with pytest.raises(ValueError, match="no utterance is long enough"):
        Composer(utterances([0.1], [9]), PLAN, EOU, RATE, 0)
    assert End(1, 2) == End(1, 2)
