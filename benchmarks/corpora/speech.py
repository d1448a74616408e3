"""The bundled recordings as one endless piece of speech, for loads in process."""

from __future__ import annotations

from functools import cache
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from parakeet.audio.source import read_recording

_RECORDINGS = Path(__file__).parents[2] / "parakeet" / "recordings"


@cache
def recordings() -> NDArray[np.float32]:
    """All of them, one after the other, float32 at 16 kHz; not to be written to."""
    parts = [
        np.frombuffer(read_recording(path).pcm, dtype=np.int16) for path in sorted(_RECORDINGS.glob("*.wav"))
    ]
    samples: NDArray[np.float32] = np.concatenate(parts).astype(np.float32) / np.float32(32_768)
    samples.flags.writeable = False
    return samples


def speech(offset: int, count: int) -> NDArray[np.float32]:
    """`count` samples from `offset` on; the recordings go round and round."""
    samples = recordings()
    return samples[np.arange(offset, offset + count) % len(samples)]
