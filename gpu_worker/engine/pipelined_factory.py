"""Builds a pipelined engine around a loaded model: sizes, memory, steps."""

from __future__ import annotations

import logging
from functools import partial

import torch

from gpu_worker.engine.block_manager import BlockManager
from gpu_worker.engine.clock import ChunkClock
from gpu_worker.engine.engine import EngineConfig, prompt_of
from gpu_worker.engine.interface import EngineError, EngineStats
from gpu_worker.engine.pipelined_engine import PipelinedEngine
from gpu_worker.engine.snapshot import model_fingerprint
from gpu_worker.engine.steps import EagerSteps, Steps
from gpu_worker.model.loaded_model import LoadedModel
from gpu_worker.model.model import StreamingModel
from gpu_worker.turn.stage import TurnJudge
from gpu_worker.turn.vad import SileroVad

logger = logging.getLogger(__name__)

# Audio of a stream that stands ready for the device: two chunks under way, one waiting, one arriving.
_RING_CHUNKS = 4
# What is left of free device memory for the allocator's slack and for other processes.
_SPARE_BYTES = 1 << 30


def make_pipelined_engine(
    loaded: LoadedModel, config: EngineConfig, *, judge: TurnJudge | None = None
) -> PipelinedEngine:
    """An engine whose rows are single chunks; with graphs on CUDA, with the plain model elsewhere.

    Raises EngineError when the device's memory does not hold the state of the slots.
    """
    mel = loaded.config.mel
    left_frames, right = config.context or loaded.config.default_context
    chunk_frames = right + 1
    clock = ChunkClock(mel.hop_length, mel.win_length // 2, loaded.config.subsampling_factor, chunk_frames)
    ring_frames = left_frames + chunk_frames
    page_frames = config.page_frames or ring_frames
    ring_pages = -(-ring_frames // page_frames)
    num_pages = config.num_pages or config.num_slots * ring_pages
    ring_samples = _RING_CHUNKS * clock.chunk_samples
    stats = EngineStats()
    vad = SileroVad(config.num_slots + 1, loaded.device) if config.turn_detection else None
    max_rows = min(config.batch_sizes.encode, config.num_slots)
    steps: Steps
    if loaded.device.type == "cuda":
        # Imported here: Triton is not there on every machine.
        from gpu_worker.engine.cuda_graphs import GraphSteps
        from gpu_worker.model.cuda_model import CudaModel

        model = CudaModel(loaded, (left_frames, right), reset_at_end=config.reset_at_end)
        if not config.num_pages:
            num_pages = _pages_that_fit(loaded, config, num_pages, page_frames, chunk_frames)
        steps = graphs = GraphSteps(
            model,
            num_slots=config.num_slots,
            num_pages=num_pages,
            page_frames=page_frames,
            ring_pages=ring_pages,
            ring_samples=ring_samples,
            batch_sizes=config.batch_sizes,
            vad=vad,
            stats=stats,
        )
        logger.info("graphs captured", extra={"seconds": round(graphs.capture_s, 2), "pages": num_pages})
    else:
        plain = StreamingModel(loaded, (left_frames, right), reset_at_end=config.reset_at_end)
        steps = EagerSteps(
            plain,
            clock,
            num_slots=config.num_slots,
            num_pages=num_pages,
            page_frames=page_frames,
            ring_samples=ring_samples,
            max_rows=max_rows,
            vad=vad,
            stats=stats,
        )
    return PipelinedEngine(
        steps,
        config,
        BlockManager(num_pages, page_frames, ring_pages, config.num_slots),
        clock=clock,
        tokenizer=loaded.tokenizer,
        left_frames=left_frames,
        fingerprint=model_fingerprint(loaded, (left_frames, right), reset_at_end=config.reset_at_end),
        eou_id=loaded.config.eou_id,
        prompt_of=partial(prompt_of, loaded.config),
        judge=judge,
        stats=stats,
    )


def page_bytes(loaded: LoadedModel, page_frames: int) -> int:
    """Device memory of one page over all layers, keys and values."""
    config = loaded.config
    return 2 * config.num_layers * page_frames * config.d_model * loaded.dtype.itemsize


def step_bytes(loaded: LoadedModel, config: EngineConfig, chunk_frames: int) -> int:
    """Device memory of what a step makes on its way, at most: an estimate that errs upwards."""
    model, size = loaded.config, loaded.dtype.itemsize
    pre_encode = min(config.batch_sizes.pre_encode, config.num_slots)
    rows = min(config.batch_sizes.encode, config.num_slots)
    second_level = (2 * chunk_frames + 1) * (model.mel.n_mels // 4 + 1) * model.subsampling_channels
    features = 8 * chunk_frames * 4 * (model.mel.win_length + 2 * model.mel.n_fft)
    layers = chunk_frames * size * (2 * model.ff_dim + 12 * model.d_model)
    symbols = 4 * (1 + 3 * chunk_frames * model.max_symbols) + 8 * chunk_frames * model.joint_hidden * size
    return pre_encode * (2 * second_level * size + features) + 2 * rows * (layers + symbols)


def slot_bytes(loaded: LoadedModel) -> int:
    """Device memory of one slot's state besides its pages."""
    model, size = loaded.config, loaded.dtype.itemsize
    conv = model.num_layers * (model.conv_kernel - 1) * model.d_model * size
    predictor = model.pred_layers * model.pred_hidden * (size + 4) + model.joint_hidden * size
    return conv + predictor + 4 * (241 + 7 * model.mel.n_mels) + 8


def _pages_that_fit(
    loaded: LoadedModel, config: EngineConfig, wanted: int, page_frames: int, chunk_frames: int
) -> int:
    """As many pages as all slots could want, or as the device has memory for."""
    free, _ = torch.cuda.mem_get_info(loaded.device)
    other = (
        (config.num_slots + 1) * slot_bytes(loaded) + step_bytes(loaded, config, chunk_frames) + _SPARE_BYTES
    )
    fit = (free - other) // page_bytes(loaded, page_frames) - 1
    if fit < 1:
        raise EngineError(
            f"The device has {free / 1e9:.1f} GB free; {config.num_slots} streams need {other / 1e9:.1f} GB "
            "besides their key/value pages. Take fewer with --max-num-streams."
        )
    if fit < wanted:
        logger.warning("not all streams can be long at once", extra={"pages": fit, "wanted": wanted})
    return int(min(wanted, fit))
