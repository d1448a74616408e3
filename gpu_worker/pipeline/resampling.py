"""Streaming resampling to the engine's rate, as a pure function of the audio.

Two properties of soxr would make the samples depend on more than the audio. Its output varies with the sizes
of its input: so it gets blocks of one size. And its state cannot be stored: so the audio is cut into segments
of SEGMENT_S, each resampled by a fresh soxr that starts a little before its segment and ends a little after
it. A replay then begins at any segment, and returns the samples of the first run.
"""

from __future__ import annotations

from math import gcd
from typing import TYPE_CHECKING, Final

import numpy as np
import soxr

from gpu_worker.engine.interface import ENGINE_SAMPLE_RATE

if TYPE_CHECKING:
    from numpy.typing import NDArray

SEGMENT_S: Final = 10
# Audio before a segment for soxr's filter to settle, and after it for its look-ahead; the longest filter at
# quality HQ spans about 20 ms at the lowest rate.
_MIN_MARGIN_MS: Final = 100
_BLOCK_MS: Final = 10


class _Segment:
    """One segment that is being resampled.

    at: next output of this soxr; first, until: outputs of the segment; all counted from the start of
    the stream at the engine's rate. ready: outputs that wait for the segment before to be complete.
    """

    __slots__ = ("at", "first", "ready", "soxr", "until")

    def __init__(self, rate: int, starts_at: int, first: int, until: int) -> None:
        self.soxr = soxr.ResampleStream(rate, ENGINE_SAMPLE_RATE, 1, dtype="float32", quality="HQ")
        self.at = starts_at
        self.first = first
        self.until = until
        self.ready: list[NDArray[np.float32]] = []

    def push(self, block: NDArray[np.float32], *, last: bool) -> None:
        """Feed a block; outputs that lie in the segment become ready."""
        out: NDArray[np.float32] = self.soxr.resample_chunk(block, last=last)
        start = self.at
        self.at = start + len(out)
        inside = out[max(0, self.first - start) : max(0, self.until - start)]
        if len(inside):
            self.ready.append(inside)


class Resampler:
    """Resamples one stream.

    rate: rate of the client, Hz. start: first sample that will be pushed, at the client's rate: a value of
    `replay_start`, 0 for a whole stream. first_output: position of the first output, at the engine's rate.
    """

    def __init__(self, rate: int, start: int = 0) -> None:
        self._rate = rate
        self._segment_samples = rate * SEGMENT_S
        self._margin = _margin_samples(rate)
        # Outputs follow from `start` only if it maps to a whole output.
        assert start % (rate // gcd(rate, ENGINE_SAMPLE_RATE)) == 0
        self._block = max(1, rate * _BLOCK_MS // 1000)
        self._pending: list[NDArray[np.float32]] = []
        self._num_pending = 0
        self._pushed = start
        self._segments: list[_Segment] = []
        self._begin_segment(self._index_at(start))
        self.first_output: Final = self._segments[0].first

    def _index_at(self, start: int) -> int:
        """Return the first segment whose outputs can all be made from this sample on."""
        return 0 if start == 0 else -(-(start + self._margin) // self._segment_samples)

    def _begin_segment(self, index: int) -> None:
        first = index * SEGMENT_S * ENGINE_SAMPLE_RATE
        starts_at = self._pushed * ENGINE_SAMPLE_RATE // self._rate
        self._segments.append(_Segment(self._rate, starts_at, first, first + SEGMENT_S * ENGINE_SAMPLE_RATE))
        self._next_index = index + 1
        self._next_begin = self._next_index * self._segment_samples - self._margin

    def push(self, samples: NDArray[np.float32]) -> list[NDArray[np.float32]]:
        """Take samples at the client's rate; return the finished samples at the engine's rate."""
        self._pending.append(samples)
        self._num_pending += len(samples)
        if self._num_pending < self._block:
            return []
        whole = np.concatenate(self._pending) if len(self._pending) > 1 else samples
        at = 0
        out: list[NDArray[np.float32]] = []
        while len(whole) - at >= (size := self._next_block()):
            out += self._push_block(whole[at : at + size], last=False)
            at += size
        self._pending = [whole[at:]] if at < len(whole) else []
        self._num_pending = len(whole) - at
        return out

    def finish(self) -> list[NDArray[np.float32]]:
        """End the input; return the rest of the samples."""
        whole = np.concatenate(self._pending) if self._pending else np.empty(0, np.float32)
        self._pending = []
        self._num_pending = 0
        out: list[NDArray[np.float32]] = []
        at = 0
        while len(whole) - at >= (size := self._next_block()):
            out += self._push_block(whole[at : at + size], last=False)
            at += size
        return out + self._push_block(whole[at:], last=True)

    def _next_block(self) -> int:
        """Return the size of the next block, which ends where a segment begins: all runs cut alike."""
        return min(self._block, self._next_begin - self._pushed)

    def _push_block(self, block: NDArray[np.float32], *, last: bool) -> list[NDArray[np.float32]]:
        for segment in self._segments:
            segment.push(block, last=last)
        self._pushed += len(block)
        out: list[NDArray[np.float32]] = []
        while self._segments:
            segment = self._segments[0]
            out += segment.ready
            segment.ready = []
            if segment.at < segment.until and not last:
                break
            del self._segments[0]
        if self._pushed == self._next_begin and not last:
            self._begin_segment(self._next_index)
        return out


def _margin_samples(rate: int) -> int:
    """Return how many samples before a segment its soxr begins: whole outputs, at least the margin."""
    unit = rate // gcd(rate, ENGINE_SAMPLE_RATE)
    return -(-rate * _MIN_MARGIN_MS // 1000 // unit) * unit


def replay_start(rate: int, samples_decoded: int) -> int:
    """Return the first sample of the client that a replay from `samples_decoded` (engine's rate) needs."""
    if rate == ENGINE_SAMPLE_RATE:
        return samples_decoded
    index = samples_decoded // (SEGMENT_S * ENGINE_SAMPLE_RATE)
    return 0 if index == 0 else index * rate * SEGMENT_S - _margin_samples(rate)
