"""The sample types of engines: float32 at full scale 1.0, or pcm16 as clients send it.

pcm16 is scaled where it is stored, in one pass, and is always finite.
"""

from __future__ import annotations

from typing import Final

import numpy as np
from numpy.typing import NDArray

Samples = NDArray[np.float32] | NDArray[np.int16]

PCM16: Final = np.dtype(np.int16)
FLOAT32: Final = np.dtype(np.float32)
# Louder samples overflow the power spectrum, and a resampler's sums; full scale is 1.0.
MAX_SAMPLE: Final = 1e6
# An array, since numpy takes longer to make one of a scalar than to multiply a short message.
PCM16_SCALE: Final = np.array(1 / 32768, np.float32)


def float_samples(samples: Samples) -> NDArray[np.float32]:
    """Return the same samples as float32.

    Raises ValueError for another type, for more than one dimension, and for samples that are not finite.
    """
    if samples.ndim != 1 or samples.dtype not in (FLOAT32, PCM16):
        raise ValueError("samples are one dimension of float32 or int16")
    if samples.dtype == PCM16:
        scaled: NDArray[np.float32] = np.multiply(samples, PCM16_SCALE, dtype=FLOAT32)
        return scaled
    if not np.isfinite(samples).all():
        raise ValueError("samples must be finite")
    return samples  # type: ignore[return-value]
