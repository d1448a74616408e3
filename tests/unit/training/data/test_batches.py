"""Batches have fixed shapes, the right places, and windows at the ends of utterances."""

from __future__ import annotations

import random
import threading
from pathlib import Path

import numpy as np
import pytest
import torch

from tests.unit.training.data.test_composition import CORPUS, EOU, PLAN, composer
from training.augment.assembly import assemble, change_speed
from training.augment.draw import Draw
from training.data.batches import (
    ENCODER_FRAME,
    HOP,
    NO_LIMIT,
    BatchFeed,
    Buckets,
    encoder_frames,
    make_batch,
)
from training.data.composition import Composer, End, Piece, Sample
from training.data.utterances import RATE, Spoken, gathered, read_shards, write_shard

SAMPLES = (
    Sample(
        (Piece(2, 800, 0), Piece(0, 30_000, 0)), 40_000, (2, 2, 2, EOU, 0), (20, 20), (End(3, 16_800),), 1.25
    ),
    Sample((), 16_000, (), (), (), 1.0),
)


def test_lengths_places_and_windows() -> None:
    batch = make_batch(SAMPLES, CORPUS, 352, 3)
    assert batch.longest == 40_000
    assert batch.first_BK[0].tolist() == [int(CORPUS.first[2]), int(CORPUS.first[0])]
    assert batch.position_BK[0].tolist() == [800, 30_000]
    assert batch.length_BK.tolist() == [[16_000, 6_400], [0, 0]]
    assert batch.num_samples_B.tolist() == [32_000, 16_000]
    assert batch.num_tokens == (5, 0)
    # The speech ended at 16,800 / 1.25 samples, in encoder frame 10.
    assert batch.window_first_BU[0].tolist() == [0, 0, 0, 10, 0]
    assert batch.window_last_BU[0].tolist() == [NO_LIMIT, NO_LIMIT, NO_LIMIT, 13, NO_LIMIT]
    assert batch.num_frames == (26, 14)
    assert batch.seconds == 3.0


@pytest.mark.parametrize(("mels", "frames"), [(0, 1), (1, 1), (8, 2), (200, 26), (3_200, 401)])
def test_encoder_frames(mels: int, frames: int) -> None:
    assert encoder_frames(mels) == frames


def test_a_skipped_begin_moves_the_place_in_the_corpus() -> None:
    sample = Sample((Piece(1, 0, 160),), 9_440, (1,), (), (), 1.0)
    batch = make_batch([sample], CORPUS, 224, 3)
    assert int(batch.first_BK[0, 0]) == int(CORPUS.first[1]) + 160
    assert int(batch.length_BK[0, 0]) == int(CORPUS.length[1]) - 160


def test_audio_is_put_together_and_read_at_its_speed() -> None:
    ramp = np.arange(CORPUS.samples.size, dtype=np.int64) % 30_000
    corpus = torch.tensor(ramp.astype(np.int16))
    batch = make_batch(SAMPLES, CORPUS, 352, 3)
    draw = Draw(torch.Generator().manual_seed(0), 2, random.Random(0))
    audio = assemble(corpus, batch, draw)
    assert audio.shape == (2, 40_000)
    assert not audio[0, :800].any()
    assert not audio[0, 16_800:30_000].any()
    assert not audio[1].any()
    first = int(CORPUS.first[2])
    expected = corpus[first : first + 16_000].float() / 32_768
    gain = float(audio[0, 10_800] / expected[10_000])
    assert 10 ** (-3 / 20) <= gain <= 10 ** (3 / 20)
    torch.testing.assert_close(audio[0, 800:16_800], expected * gain)
    slowed = change_speed(audio, torch.tensor([1.25, 1.0]), 352 * HOP)
    assert slowed.shape == (2, 352 * HOP)
    torch.testing.assert_close(
        slowed[0, 4_000:8_000],
        audio[0, 5_000:10_000:1][torch.arange(0, 4_000) * 5 // 4]
        + 0.25 * (torch.arange(0, 4_000) * 5 % 4) * (gain / 32_768),
        atol=1e-4,
        rtol=0,
    )
    assert not slowed[0, 32_000:].any()


def test_buckets() -> None:
    buckets = Buckets((224, 352), 20.0)
    assert buckets.size(224) == 8
    assert buckets.size(352) == 5
    assert buckets.of(SAMPLES[0]) == 224
    assert buckets.of(Sample((), 60_000, (), (), (), 1.0)) is None
    assert buckets.of(Sample((), 8_000, (1,) * 12, (), (), 1.0)) is None


def test_the_feed_gives_full_batches_and_ends() -> None:
    buckets = Buckets((224, 352, 544, 832, 1_600, 3_200), 30.0)
    before = threading.active_count()
    with BatchFeed(composer(), CORPUS, buckets, eou_window_frames=3, pin=False) as feed:
        for _ in range(20):
            batch = feed.next()
            assert len(batch.num_frames) == buckets.size(batch.num_mels)
            assert int(batch.num_samples_B.max()) <= batch.num_mels * HOP
            limited = batch.window_last_BU < NO_LIMIT
            assert torch.equal(limited, batch.tokens_BU == EOU)
            width = batch.window_last_BU - batch.window_first_BU
            assert (width[limited] == 3).all()
            latest = batch.window_first_BU.amax(1) * ENCODER_FRAME
            assert (latest <= batch.num_samples_B).all()
    assert threading.active_count() == before


def test_an_error_of_the_thread_is_raised_where_it_is_waited_for() -> None:
    class Broken(Composer):
        def sample(self, *, only_short: bool) -> Sample:
            raise RuntimeError(f"no sample, short {only_short}")

    broken = Broken(CORPUS, PLAN, EOU, RATE, 0)
    with (
        BatchFeed(broken, CORPUS, Buckets(), eou_window_frames=3, pin=False) as feed,
        pytest.raises(RuntimeError, match="no sample"),
    ):
        feed.next()


def test_shards_come_back_as_they_were(tmp_path: Path) -> None:
    spoken = [
        Spoken(np.arange(10 * k, 10 * k + 5 + k, dtype=np.int16), f"text {k}", (k, k + 1)) for k in range(6)
    ]
    write_shard(tmp_path, "a-000", spoken[:2])
    write_shard(tmp_path, "a-001", spoken[2:5])
    write_shard(tmp_path, "b-000", spoken[5:])
    write_shard(tmp_path, "empty", [])
    whole = read_shards(tmp_path, lambda text: [len(text)])
    expected = gathered(spoken, lambda text: [len(text)])
    assert np.array_equal(whole.samples, expected.samples)
    assert np.array_equal(whole.first, expected.first)
    assert whole.tokens == expected.tokens
    assert whole.phonemes == expected.phonemes
    half = read_shards(tmp_path, lambda text: [len(text)], rank=1, world=2)
    assert np.array_equal(half.length, expected.length[2:5])
    with pytest.raises(FileNotFoundError, match="process 3 of 4"):
        read_shards(tmp_path, lambda text: [1], rank=3, world=4)
