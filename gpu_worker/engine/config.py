"""Sizes and switches of an engine that is built around a model."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

from common.options import StreamOptions
from common.phrases import Phrase
from gpu_worker.turn.settings import TurnSettings


@dataclass(frozen=True, slots=True)
class BatchSizes:
    """Largest number of rows of one call of each stage."""

    pre_encode: int
    encode: int
    decode: int


@dataclass(frozen=True, slots=True)
class EngineConfig:
    """Sizes and switches of an engine.

    num_slots: number of streams that can be open at once.
    context: (left, right) attention context in encoder frames; None for the checkpoint's default.
    batch_sizes: most rows of a call of each stage; a step has as many rows as `encode`.
    page_frames: encoder frames of a page; 0 for one page a stream, as long as its ring.
    num_pages: pages of the cache; 0 for enough for every slot.
    max_step_frames: most encoder frames of one stream in a step on CPU; a chunk is always permitted.
    recording_rows: rows of a step for recordings, while live streams are open.
    reset_at_end: whether `<EOU>` and `<EOB>` reset the predictor.
    turn_detection: whether the speech detector runs at all.
    audio_snapshots: whether snapshots leave out the state that can be computed again from audio.
    phrase_bytes: bytes of memory for boosting trees; 0 for no phrase boosting.
    common_phrases: phrases of all streams.
    trees_beside: whether trees are built in a thread of their own, so that the engine's thread has to be
        woken (`PhraseBook.wake_with`).
    longest_pace_s: longest time between two steps of a busy host whose steps overlap.
    turn_settings: returns the turn detection settings of a stream's options.
    """

    num_slots: int
    context: tuple[int, int] | None = None
    batch_sizes: BatchSizes = field(default_factory=lambda: BatchSizes(32, 32, 32))
    page_frames: int = 0
    num_pages: int = 0
    max_step_frames: int = 8
    recording_rows: int = 1
    reset_at_end: bool = True
    turn_detection: bool = True
    audio_snapshots: bool = False
    phrase_bytes: int = 1 << 20
    common_phrases: tuple[Phrase, ...] = ()
    trees_beside: bool = False
    longest_pace_s: float = 0.0
    turn_settings: Callable[[StreamOptions], TurnSettings] = lambda _: TurnSettings()
