"""The reach of a model's caches into the past, through all layers."""

from __future__ import annotations

from typing import Final

from gpu_worker.model.config import ModelConfig

# The subsampling's convolutions and the window of a mel frame.
_FRONT_END_FRAMES: Final = 3


def reach_frames(config: ModelConfig, context: tuple[int, int]) -> int:
    """Return the encoder frames, whole chunks, on which keys, values and caches at the end of a chunk depend.

    A frame of a layer's output depends on the frames of its input from `left` frames before the start of a
    chunk on. That chunk is its own, or the chunk of the earliest frame that its convolution reads.

    Args:
        context: (left, right) attention context in encoder frames; a chunk is right + 1 frames.
    """
    left, chunk = context[0], context[1] + 1

    def whole(frames: int) -> int:
        return -(-frames // chunk) * chunk

    layer = left + whole(config.conv_kernel - 1)
    return config.num_layers * layer + whole(_FRONT_END_FRAMES)
