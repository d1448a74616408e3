"""Samples, frames and chunks, against the definition of the convolutions themselves."""

from __future__ import annotations

import pytest

from gpu_worker.engine.slots.clock import ChunkClock


def clock(chunk_frames: int = 2) -> ChunkClock:
    return ChunkClock(160, 200, 8, chunk_frames)


def frames_by_convolution(samples: int) -> int:
    """Three convolutions of kernel 3, stride 2, padding 2 + 1 over the mel frames."""
    length = samples // 160
    for _ in range(3):
        length = (length + 3 - 3) // 2 + 1
    return length


def is_complete(frame: int, samples: int) -> bool:
    """Whether an encoder frame's last mel frame has all of its window."""
    return 160 * 8 * frame + 200 <= samples


@pytest.mark.parametrize("chunk_frames", [1, 2, 7, 14])
def test_counts_for_every_length(chunk_frames: int) -> None:
    c = clock(chunk_frames)
    for samples in range(1, 40_000, 7):
        assert c.total_frames(samples) == frames_by_convolution(samples)
        complete = sum(is_complete(frame, samples) for frame in range(40))
        assert c.whole_chunks(samples) == complete // chunk_frames
        rest = c.total_frames(samples) - c.whole_chunks(samples) * chunk_frames
        assert 0 <= rest <= chunk_frames, "the end fits into one chunk"


@pytest.mark.parametrize("chunk_frames", [1, 2, 7, 14])
def test_a_chunk_is_whole_from_its_last_sample_on(chunk_frames: int) -> None:
    c = clock(chunk_frames)
    for chunks in range(1, 20):
        needed = c.samples_of_chunks(chunks)
        assert c.whole_chunks(needed) == chunks
        assert c.whole_chunks(needed - 1) == chunks - 1


def test_nothing_is_nothing() -> None:
    assert clock().total_frames(0) == 0
    assert clock().samples_of_chunks(0) == 0
    assert clock().whole_chunks(0) == 0
