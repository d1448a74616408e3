"""Device memory of an engine's state, and how many pages of keys and values fit beside it."""

from __future__ import annotations

import logging

import torch

from gpu_worker.engine.config import EngineConfig
from gpu_worker.engine.interface import EngineError
from gpu_worker.model.loaded_model import LoadedModel

logger = logging.getLogger(__name__)

# Free device memory that is left for the allocator's slack and for other processes.
_SPARE_BYTES = 1 << 30


def page_bytes(loaded: LoadedModel, page_frames: int) -> int:
    """Return the device memory of one page over all layers, keys and values, in bytes."""
    config = loaded.config
    return 2 * config.num_layers * page_frames * config.d_model * loaded.dtype.itemsize


def step_bytes(loaded: LoadedModel, config: EngineConfig, chunk_frames: int) -> int:
    """Return an upper estimate of the device memory of a step's intermediate results, in bytes."""
    model, size = loaded.config, loaded.dtype.itemsize
    pre_encode = min(config.batch_sizes.pre_encode, config.num_slots)
    rows = min(config.batch_sizes.encode, config.num_slots)
    second_level = (2 * chunk_frames + 1) * (model.mel.n_mels // 4 + 1) * model.subsampling_channels
    features = 8 * chunk_frames * 4 * (model.mel.win_length + 2 * model.mel.n_fft)
    layers = chunk_frames * size * (2 * model.ff_dim + 12 * model.d_model)
    # With boosting trees, a row has the scores of all symbols twice.
    scores = 8 * (model.blank_id + 1) if config.phrase_bytes else 0
    symbols = (
        scores + 4 * (1 + 3 * chunk_frames * model.max_symbols) + 8 * chunk_frames * model.joint_hidden * size
    )
    return pre_encode * (2 * second_level * size + features) + 2 * rows * (layers + symbols + scores)


def slot_bytes(loaded: LoadedModel) -> int:
    """Return the device memory of one slot's state besides its pages, in bytes."""
    model, size = loaded.config, loaded.dtype.itemsize
    conv = model.num_layers * (model.conv_kernel - 1) * model.d_model * size
    predictor = model.pred_layers * model.pred_hidden * (size + 4) + model.joint_hidden * size
    return conv + predictor + 4 * (241 + 7 * model.mel.n_mels) + 24


def pages_that_fit(
    loaded: LoadedModel,
    config: EngineConfig,
    wanted: int,
    page_frames: int,
    chunk_frames: int,
    ring_pages: int,
) -> int:
    """Return the number of pages that all slots could need, or for which the device has memory.

    ring_pages: pages of one stream. Raises EngineError if there is no memory for these.
    """
    free, _ = torch.cuda.mem_get_info(loaded.device)
    other = (
        (config.num_slots + 1) * slot_bytes(loaded)
        + step_bytes(loaded, config, chunk_frames)
        + config.phrase_bytes
        + _SPARE_BYTES
    )
    fit = (free - other) // page_bytes(loaded, page_frames) - 1
    if fit < ring_pages:
        raise EngineError(
            f"The device has {free / 1e9:.1f} GB free; {config.num_slots} streams need {other / 1e9:.1f} GB "
            "besides their key/value pages, and one of them "
            f"{(ring_pages + 1) * page_bytes(loaded, page_frames) / 1e9:.1f} GB of these. "
            "Take fewer with --max-num-streams."
        )
    if fit < wanted:
        logger.warning("not all streams can be long at once", extra={"pages": fit, "wanted": wanted})
    return int(min(wanted, fit))
