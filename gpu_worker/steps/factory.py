"""Builds the engine of a model from a worker's settings: device, compute type, sizes, steps."""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import torch

from common.errors import SettingsError
from common.languages import UNKNOWN, Languages
from common.options import StreamOptions
from common.phrases import Phrase, phrases_digest, read_phrases_file
from common.process.machine import Machine
from common.process.pace import Pace
from common.settings import WorkerSettings
from gpu_worker.boosting.spelling import tree_of
from gpu_worker.engine.config import BatchSizes, EngineConfig
from gpu_worker.engine.engine import SpeechEngine
from gpu_worker.engine.interface import ENGINE_SAMPLE_RATE, PhrasesFull, UnsupportedOption
from gpu_worker.engine.phrases.book import PhraseBook, no_trees
from gpu_worker.engine.slots.clock import ChunkClock
from gpu_worker.engine.steps import AllocateRings, PageShape, Steps, StepShape
from gpu_worker.model.config import ModelConfig, PromptConfig, prompt_index
from gpu_worker.model.errors import ModelConfigError
from gpu_worker.model.loaded_model import LoadedModel
from gpu_worker.model.loading.checkpoint import load_model
from gpu_worker.model.loading.export import DTYPES
from gpu_worker.model.loading.fingerprint import model_fingerprint, weights_name
from gpu_worker.model.loading.inspection import locate
from gpu_worker.model.loading.spoken import size_source, spoken_languages
from gpu_worker.model.model import StreamingModel
from gpu_worker.model.reach import reach_frames
from gpu_worker.steps.eager import EagerSteps
from gpu_worker.steps.memory import pages_that_fit
from gpu_worker.turn.settings import TurnSettings
from gpu_worker.turn.stage import TurnJudge
from gpu_worker.turn.vad import SileroVad

logger = logging.getLogger(__name__)

# With 96 streams of `tiny`, rows by 48 cost 6 % less than rows by 32, and larger steps do not cost less. The
# pre-encoding of 32 rows works on fresh memory each time, and takes a sixth longer than that of 16.
_CPU_BATCH_SIZE = 48
_CPU_PRE_ENCODE_BATCH_SIZE = 16
# Recordings have one row in this many, where rows cost little time.
_RECORDINGS_SHARE = 8
# Larger steps only make streams wait longer for their results, and their graphs take memory.
_CUDA_BATCH_SIZE = 4096
_CUDA_STEP_FRAMES = 14 * 1024
_CUDA_PRE_ENCODE_BATCH_SIZE = 1024


@dataclass(frozen=True, slots=True)
class BuiltEngine:
    """An engine, and its description for the worker.

    `chunk_ms` is the audio of one result, `weights` a name for the model's weights, `context` its attention
    context in encoder frames, `common_phrases` the phrases of all streams. `vocabulary` is its serialized
    SentencePiece model, None where the engine does not expose it; `prompt` are its language prompts,
    `languages` the languages that it recognises.
    """

    engine: SpeechEngine
    model: str
    revision: str | None
    device: str
    dtype: str
    chunk_ms: int
    weights: str
    context: tuple[int, int]
    common_phrases: tuple[Phrase, ...] = ()
    vocabulary: bytes | None = None
    prompt: PromptConfig | None = None
    languages: Languages = UNKNOWN


def make_engine(
    settings: WorkerSettings,
    *,
    judge: TurnJudge | None = None,
    turn_settings: Callable[[StreamOptions], TurnSettings] | None = None,
    rings: AllocateRings | None = None,
) -> BuiltEngine:
    """Load the model and build the engine that the settings ask for.

    Args:
        judge: smart-turn, where it runs.
        turn_settings: returns the turn detection settings of a stream's options; None for the defaults.

    Raises SettingsError for a missing device or settings that exclude each other, ModelError for a model that
    cannot be found, read or used.
    """
    device = pick_device(settings.device)
    if settings.num_threads is not None:
        torch.set_num_threads(settings.num_threads)
    elif device.type == "cpu":
        # PyTorch takes every core, also those that a container's limit excludes.
        torch.set_num_threads(min(torch.get_num_threads(), Machine.here().threads_of(1)))
    if settings.backend == "nemo":
        return _make_nemo_engine(settings, device, judge, turn_settings or _default_turn_settings)
    dtype = pick_dtype(settings.dtype, device)
    loaded = load_model(
        settings.model or None,
        size=settings.model_size,
        revision=settings.model_revision,
        dtype=dtype,
        device=device,
    )
    config = engine_config(settings, loaded, turn_settings)
    try:
        engine = make_model_engine(loaded, config, judge=judge, rings=rings)
    except (UnsupportedOption, PhrasesFull) as error:  # the phrases of all streams: none is open yet
        raise SettingsError(f"--phrases-file {settings.phrases_file}: {error}") from error
    chunk_ms = engine.clock.chunk_frames * loaded.config.frame_ms
    logger.info(
        "engine ready",
        extra={
            "model": loaded.source,
            "revision": loaded.revision,
            "device": str(device),
            "dtype": str(dtype).removeprefix("torch."),
            "chunk_ms": chunk_ms,
            "slots": engine.capacity,
            "threads": torch.get_num_threads(),
        },
    )
    prompt = loaded.config.prompt
    return BuiltEngine(
        engine=engine,
        model=loaded.source,
        revision=loaded.revision,
        device=str(device),
        dtype=str(dtype).removeprefix("torch."),
        chunk_ms=chunk_ms,
        weights=weights_name(loaded.weights, loaded.config.num_layers),
        context=loaded.config.context_for_chunk(settings.chunk_ms),
        common_phrases=config.common_phrases,
        vocabulary=loaded.tokenizer.model,
        prompt=prompt,
        languages=spoken_languages(
            loaded.source,
            (name for name, _ in prompt.languages) if prompt else (),
            loaded.tokenizer.letters,
        ),
    )


def _make_nemo_engine(
    settings: WorkerSettings,
    device: torch.device,
    judge: TurnJudge | None,
    turn_settings: Callable[[StreamOptions], TurnSettings],
) -> BuiltEngine:
    """Return the reference engine. Its modules, and NeMo, are imported only for it."""
    from gpu_worker.steps.nemo import NemoSteps
    from gpu_worker.steps.nemo_model import NemoModel

    if settings.dtype == "bfloat16":
        raise SettingsError("--dtype is bfloat16, but --backend nemo computes in float32.")
    if settings.paged_kv_cache:
        raise SettingsError("--paged-kv-cache is on, but --backend nemo has no pages.")
    source = settings.model or settings.model_size
    path, revision = locate(source, settings.model_revision)
    model = NemoModel(path, device, settings.chunk_ms, reset_at_end=settings.eou_reset)
    steps = NemoSteps(
        model,
        num_slots=settings.worker_max_streams,
        batch_size=settings.encode_batch_size or _CPU_BATCH_SIZE,
        turn_detection=settings.turn_detection,
    )
    engine = SpeechEngine(
        steps, model.tokenizer, turns_of=turn_settings, prompt_of=steps.prompt_of, judge=judge
    )
    chunk_ms = engine.clock.chunk_samples * 1000 // ENGINE_SAMPLE_RATE
    return BuiltEngine(
        engine=engine,
        model=f"{source} (NeMo)",
        revision=revision,
        device=str(device),
        dtype="float32",
        chunk_ms=chunk_ms,
        weights=model.weights_name,
        context=model.context,
        languages=spoken_languages(
            settings.model or size_source(settings.model_size), model.languages, model.tokenizer.letters
        ),
    )


def make_model_engine(
    loaded: LoadedModel,
    config: EngineConfig,
    *,
    judge: TurnJudge | None = None,
    rings: AllocateRings | None = None,
) -> SpeechEngine:
    """Return an engine around a loaded model: with graphs on CUDA, with the plain model elsewhere.

    rings: allocates the memory of audio; None for memory of this process.

    Raises SettingsError for fewer pages than one stream needs, EngineError if the device's memory does not
    hold the state of the slots and these pages, ValueError for a model that the CUDA kernels do not support.
    """
    mel, on_cuda = loaded.config.mel, loaded.device.type == "cuda"
    context = config.context or loaded.config.default_context
    left_frames, chunk_frames = context[0], context[1] + 1
    # A device takes rows of one chunk, for which its graphs are captured.
    max_chunks = 1 if on_cuda else max(1, config.max_step_frames // chunk_frames)
    ring_frames = left_frames + max_chunks * chunk_frames
    page_frames = config.page_frames or ring_frames
    ring_pages = -(-ring_frames // page_frames)
    num_pages = config.num_pages or config.num_slots * ring_pages
    if num_pages < ring_pages:
        raise SettingsError(
            f"--paged-kv-max-pages got {num_pages}, but takes at least {ring_pages}: one stream of this "
            f"model has as many pages of {page_frames} frames."
        )
    if on_cuda and not config.num_pages:
        num_pages = pages_that_fit(loaded, config, num_pages, page_frames, chunk_frames, ring_pages)
    shape = StepShape(
        clock=ChunkClock(mel.hop_length, mel.win_length // 2, loaded.config.subsampling_factor, chunk_frames),
        num_slots=config.num_slots,
        max_rows=min(config.batch_sizes.encode, config.num_slots),
        max_chunks=max_chunks,
        frame_symbols=loaded.config.max_symbols,
        recording_rows=config.recording_rows,
        pages=PageShape(num_pages, page_frames, ring_pages, left_frames),
        overlaps=on_cuda,
        hears=config.turn_detection,
        fingerprint=_fingerprint(loaded, context, config),
        reach_frames=reach_frames(loaded.config, context) if config.audio_snapshots else 0,
    )
    vad = SileroVad(config.num_slots + 1, loaded.device) if config.turn_detection else None
    steps: Steps
    if on_cuda:
        # Imported here: not every machine has Triton.
        from gpu_worker.model.cuda_model import CudaModel
        from gpu_worker.steps.cuda_graphs import GraphSteps

        model = CudaModel(loaded, context, reset_at_end=config.reset_at_end)
        words = config.phrase_bytes // 4
        steps = graphs = GraphSteps(model, shape, config.batch_sizes, vad, words, rings)
        logger.info("graphs captured", extra={"seconds": round(graphs.capture_s, 2), "pages": num_pages})
    else:
        plain = StreamingModel(loaded, context, reset_at_end=config.reset_at_end)
        steps = EagerSteps(plain, shape, config.batch_sizes, vad, config.phrase_bytes // 4, rings)
    return SpeechEngine(
        steps,
        loaded.tokenizer,
        turns_of=config.turn_settings,
        prompt_of=partial(prompt_of, loaded.config),
        judge=judge,
        book=_book(loaded, steps, beside=config.trees_beside),
        common=config.common_phrases,
        pace=Pace(config.longest_pace_s if on_cuda else 0.0),
    )


def _fingerprint(loaded: LoadedModel, context: tuple[int, int], config: EngineConfig) -> str:
    """Return an identifier of all that a slot's state depends on, the common phrases' tree included."""
    model = model_fingerprint(loaded, context, reset_at_end=config.reset_at_end)
    return f"{model}-{phrases_digest(config.common_phrases)}" if config.common_phrases else model


def _book(loaded: LoadedModel, steps: Steps, *, beside: bool) -> PhraseBook:
    make_tree = partial(tree_of, loaded.tokenizer) if steps.trees.num_words else no_trees
    return PhraseBook(steps.trees, make_tree, beside=beside)


def prompt_of(config: ModelConfig, options: StreamOptions) -> int:
    """Return the index of a stream's language prompt. Raises UnsupportedOption."""
    try:
        return prompt_index(config.prompt, options.language)
    except ModelConfigError as error:
        raise UnsupportedOption(str(error)) from error


def engine_config(
    settings: WorkerSettings,
    loaded: LoadedModel,
    turn_settings: Callable[[StreamOptions], TurnSettings] | None = None,
) -> EngineConfig:
    """Return the sizes and switches for a loaded model. Raises SettingsError, ModelConfigError."""
    on_cuda = loaded.device.type == "cuda"
    if settings.paged_kv_cache and not on_cuda:
        raise SettingsError(
            "--paged-kv-cache is on, but its attention kernel needs CUDA and Triton; on CPU leave it off."
        )
    paged = on_cuda if settings.paged_kv_cache is None else settings.paged_kv_cache
    context = loaded.config.context_for_chunk(settings.chunk_ms)
    automatic, pre_encode = _CPU_BATCH_SIZE, _CPU_PRE_ENCODE_BATCH_SIZE
    if on_cuda:
        # All slots, as long as more rows make a step cheaper for each of them.
        automatic = min(settings.worker_max_streams, _CUDA_STEP_FRAMES // (context[1] + 1), _CUDA_BATCH_SIZE)
        pre_encode = min(automatic, _CUDA_PRE_ENCODE_BATCH_SIZE)
    return EngineConfig(
        num_slots=settings.worker_max_streams,
        context=context,
        batch_sizes=BatchSizes(
            settings.pre_encode_batch_size or pre_encode,
            settings.encode_batch_size or automatic,
            settings.decode_batch_size or automatic,
        ),
        recording_rows=settings.recording_rows or (max(1, automatic // _RECORDINGS_SHARE) if on_cuda else 1),
        page_frames=settings.paged_kv_page_size if paged else 0,
        num_pages=settings.paged_kv_max_pages if paged else 0,
        reset_at_end=settings.eou_reset,
        turn_detection=settings.turn_detection,
        audio_snapshots=on_cuda if settings.snapshots == "auto" else settings.snapshots == "audio",
        longest_pace_s=settings.step_pace_ms / 1000,
        turn_settings=turn_settings or _default_turn_settings,
        phrase_bytes=settings.phrase_memory_mb << 20,
        common_phrases=read_phrases_file(settings.phrases_file),
        trees_beside=True,
    )


def pick_device(name: str) -> torch.device:
    """Return the device; `auto` is CUDA if there is a device. Raises SettingsError for a missing one."""
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    device = torch.device(name)
    if device.type == "cuda" and (device.index or 0) >= torch.cuda.device_count():
        raise SettingsError(f"--device is {name}, but {torch.cuda.device_count()} CUDA devices are there.")
    return device


def pick_dtype(name: str, device: torch.device) -> torch.dtype:
    """Return the compute type; `auto` is bfloat16 on CUDA and float32 on CPU."""
    if name == "auto":
        return torch.bfloat16 if device.type == "cuda" else torch.float32
    return DTYPES[name]


def _default_turn_settings(_: StreamOptions) -> TurnSettings:
    return TurnSettings()
