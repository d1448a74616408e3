"""Builds the engine that the settings name: loads the model, and warms every stage up."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from typing import Final, Protocol

import numpy as np

from common.entries import StreamId
from common.errors import SettingsError
from common.options import StreamOptions
from common.phrases import phrases_digest
from common.presence.served_model import ServedModel
from common.settings import WorkerSettings
from gpu_worker.capacity import Capacity, measure_capacity
from gpu_worker.engine.engine import SpeechEngine
from gpu_worker.engine.interface import ENGINE_SAMPLE_RATE, Engine
from gpu_worker.engine.steps import AllocateRings
from gpu_worker.model.config import PromptConfig
from gpu_worker.steps.null import DEFAULT_CHUNK_MS, NullEngine
from gpu_worker.turn.configuration import make_smart_turn, nobody_waits, turn_settings, verdict_counts

logger = logging.getLogger(__name__)

_WARM_UP_S: Final = 2


class Elsewhere(Protocol):
    """Another process that owns the device, as its worker sees it. For any thread."""

    def in_hand(self) -> Collection[StreamId]:
        """Return this worker's streams that may have caused its death or hang."""

    def is_waited_for(self) -> bool:
        """Return whether the engine does nothing but wait for that process."""


@dataclass(frozen=True, slots=True)
class Backend:
    """An engine, with its description for the worker's hash and the log."""

    engine: SpeechEngine
    description: dict[str, str]
    served: ServedModel
    """The model and options that all workers of a cluster have in common."""
    wake_with: Callable[[Callable[[], None]], None]
    """Sets the callback that wakes the engine's thread when work beside it is done."""
    capacity: Capacity | None = None
    """The streams that it carries in real time; None where that was not measured."""
    elsewhere: Elsewhere | None = None
    """The process that owns the device, where that is another one; else None."""
    counts: Callable[[], Mapping[str, int | float]] = dict
    """Returns the counters of work beside the engine, for the worker's hash; called from any thread."""
    vocabulary: bytes | None = None
    prompt: PromptConfig | None = None
    """See `gpu_worker.steps.factory.BuiltEngine`."""


def make_backend(settings: WorkerSettings, *, rings: AllocateRings | None = None) -> Backend:
    """Load the backend that the settings name. Raises SettingsError and ModelError.

    rings: allocates the memory of audio; None for the default.
    """
    if settings.phrases_file and settings.backend != "native":
        raise SettingsError(f"--phrases-file is given, but --backend {settings.backend} boosts no phrases.")
    if settings.backend == "null":
        chunk_ms = settings.chunk_ms or DEFAULT_CHUNK_MS
        null = NullEngine(
            settings.worker_max_streams,
            chunk_ms,
            settings.null_step_ms,
            audio_snapshots=settings.snapshots == "audio",
            turn_detection=settings.turn_detection,
            turns_of=turn_settings(settings),
            rings=rings,
        )
        return Backend(
            null,
            {"model": "null", "device": "none", "dtype": "none", "chunk_ms": str(chunk_ms)},
            ServedModel("null", "none", chunk_ms, "none", "none"),
            nobody_waits,
            _capacity(null, settings),
        )
    # Imported here: a worker without a model needs no torch, and starts at once.
    from gpu_worker.steps.factory import make_engine

    judge = make_smart_turn(settings)
    built = make_engine(settings, judge=judge, turn_settings=turn_settings(settings), rings=rings)
    _warm_up(built.engine)

    def wake_with(wake: Callable[[], None]) -> None:
        built.engine.book.wake_with(wake)
        if judge is not None:
            judge.wake_with(wake)

    model = built.model if built.revision is None else f"{built.model}@{built.revision[:12]}"
    return Backend(
        built.engine,
        {"model": model, "device": built.device, "dtype": built.dtype, "chunk_ms": str(built.chunk_ms)},
        ServedModel(
            model,
            built.weights,
            built.chunk_ms,
            "{}, {}".format(*built.context),
            "on" if settings.eou_reset else "off",
            phrases_digest(built.common_phrases),
            ",".join(built.languages.names),
            "on" if built.languages.prompted else "off",
            built.languages.letters,
        ),
        wake_with,
        _capacity(built.engine, settings),
        counts=verdict_counts(judge),
        vocabulary=built.vocabulary,
        prompt=built.prompt,
    )


def _capacity(engine: SpeechEngine, settings: WorkerSettings) -> Capacity | None:
    """Measure the capacity of the engine, for as long as the settings allow."""
    seconds = settings.measure_capacity_s
    if not seconds:
        return None
    started = time.monotonic()
    capacity = measure_capacity(engine, seconds)
    logger.info(
        "%s, measured in %.2f s", capacity or "the capacity could not be measured", time.monotonic() - started
    )
    return capacity


def _warm_up(engine: Engine) -> None:
    """Run every stage once, so that no stream pays the cost of a first call."""
    started = time.monotonic()
    stream = StreamId(-1)
    noise = np.random.default_rng(0).standard_normal(_WARM_UP_S * ENGINE_SAMPLE_RATE, dtype=np.float32)
    engine.open(stream, StreamOptions())
    engine.feed(stream, noise * np.float32(0.1))
    engine.finish(stream)
    while engine.has_work():
        engine.step()
    logger.info("engine warm after %.2f s", time.monotonic() - started)
