"""Conversions between samples, encoder frames and chunks.

Encoder frame t needs the mel frames up to 8 t, mel frame k the samples up to ``160 k + 200``. So frame t is
complete once ``1280 t + 200`` samples have come. The end of a recording adds frames that its samples alone
would not complete: the total number is that of the offline pass.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray


@dataclass(frozen=True, slots=True)
class ChunkClock:
    """Samples, encoder frames and chunks of one model under one attention context.

    hop_samples: distance of mel frames; lookahead_samples: samples of a mel frame's window past its
    centre; factor: mel frames of an encoder frame; chunk_frames: encoder frames of a chunk.
    frame_samples: samples of an encoder frame.
    """

    hop_samples: int
    lookahead_samples: int
    factor: int
    chunk_frames: int
    frame_samples: int = field(init=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "frame_samples", self.hop_samples * self.factor)
        if self.lookahead_samples > self.frame_samples:
            raise ValueError("a mel frame reaches further than an encoder frame")

    @property
    def chunk_samples(self) -> int:
        """Number of samples of a chunk; the first chunk needs fewer."""
        return self.frame_samples * self.chunk_frames

    def samples_of_frames(self, frames: int) -> int:
        """Return the samples that the first `frames` encoder frames need."""
        return max(0, self.frame_samples * (frames - 1) + self.lookahead_samples) if frames > 0 else 0

    def samples_of_frame_array(self, frames: NDArray[np.int64]) -> NDArray[np.int64]:
        """Return `samples_of_frames` for an array."""
        samples = frames * self.frame_samples
        samples -= self.frame_samples - self.lookahead_samples
        return np.maximum(samples, 0, out=samples)

    def samples_of_chunks(self, chunks: int) -> int:
        """Return the samples that the first `chunks` whole chunks need."""
        return self.samples_of_frames(chunks * self.chunk_frames)

    def whole_chunks(self, samples: int) -> int:
        """Return how many chunks `samples` samples complete, whatever follows."""
        if samples < self.lookahead_samples:
            return 0
        return ((samples - self.lookahead_samples) // self.frame_samples + 1) // self.chunk_frames

    def total_frames(self, samples: int) -> int:
        """Return the encoder frames of a whole recording, as NeMo's offline pass counts them."""
        if samples <= 0:
            return 0
        frames, factor = samples // self.hop_samples, self.factor
        while factor > 1:
            frames, factor = frames // 2 + 1, factor // 2
        return frames
