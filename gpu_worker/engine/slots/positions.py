"""Folds the ever growing positions in a stream to small integers for a step.

A step needs a row's first frame for four purposes only: whether the stream begins there, where its pages
and its ring of audio continue, which frames share a chunk, and where a window of the speech detector ends.
All but the first are periodic. So a stream that is older than two periods is presented to the device as one
in its second period, and no number there grows with a stream's age.

Shape suffixes: B rows of a step.
"""

from __future__ import annotations

from math import lcm

import numpy as np
from numpy.typing import NDArray

from gpu_worker.engine.slots.clock import ChunkClock

# Frames within which a stream counts as beginning: no cache of a model reaches further back.
_LEAST_PERIOD_FRAMES = 256


class FoldedFrames:
    """Folds frame numbers for steps.

    Args:
        clock: clock of the model.
        ring_frames: frames of the key/value ring of a stream; 0 for none.
        ring_samples: samples of a ring of audio, a multiple of a frame's.
        window_samples: samples of a window of the speech detector.
        limit_samples: bound below which every sample number of a step must stay.

    Raises ValueError for a ring that is no multiple of a frame, and where the limit cannot be kept.
    """

    def __init__(
        self,
        clock: ChunkClock,
        *,
        ring_frames: int,
        ring_samples: int,
        window_samples: int,
        limit_samples: int,
    ) -> None:
        frame = clock.frame_samples
        if ring_samples % frame:
            raise ValueError(f"a ring of {ring_samples} samples is no multiple of a frame of {frame}")
        window_frames = lcm(window_samples, frame) // frame
        period = lcm(max(1, ring_frames), ring_samples // frame, clock.chunk_frames, window_frames)
        least = max(_LEAST_PERIOD_FRAMES, ring_frames)
        self.period = period * -(-least // period)
        if (2 * self.period * frame) + ring_samples >= limit_samples:
            raise ValueError(
                f"pages of {ring_frames} frames and audio of {ring_samples} samples repeat together only "
                f"every {self.period} frames; choose a page size that shares more factors with the chunk"
            )

    def fold(self, frames_B: NDArray[np.int64]) -> NDArray[np.int64]:
        """Return the frames, reduced by whole periods where they are two periods old or more, [B]."""
        return np.where(frames_B < 2 * self.period, frames_B, self.period + frames_B % self.period)
