"""Steps without a model (`--backend null`), for load tests of everything around it: one token a chunk.

All results are functions of the audio: a token is a checksum of its chunk's samples as pcm16, so a sample
that was lost, repeated or moved changes the text. All audio counts as speech. It is never a default, and its
text is no transcript.
"""

from __future__ import annotations

import time
import zlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from string import ascii_lowercase
from typing import Final

import numpy as np
from numpy.typing import NDArray

from common.options import StreamOptions
from gpu_worker.engine.engine import SpeechEngine
from gpu_worker.engine.interface import ENGINE_SAMPLE_RATE, EngineStats
from gpu_worker.engine.phrases.tree_memory import NO_TREES
from gpu_worker.engine.slots.clock import ChunkClock
from gpu_worker.engine.steps import (
    NO_PAGES,
    AllocateRings,
    Export,
    Flight,
    KeptFrames,
    RingMemory,
    StepFindings,
    StepShape,
    max_windows,
)
from gpu_worker.engine.transcript import TextState
from gpu_worker.turn.settings import TurnSettings

DEFAULT_CHUNK_MS: Final = 160
_FRAME_MS: Final = 80
_PAIRS: Final = tuple(first + second for first in ascii_lowercase for second in ascii_lowercase)
_SYMBOLS: Final = len(_PAIRS)
_SPACED: Final = tuple(" " + pair for pair in _PAIRS)
_TOKENS_PER_WORD: Final = 3
# Most audio of one stream in a step, so that a stream that is behind catches up in larger steps.
_STEP_MS: Final = 1_280
_SPARE_CHUNKS: Final = 2
# Reach of 24 layers with 70 frames of left context.
_REACH_FRAMES: Final = 1_876


class NullClock(ChunkClock):
    """A clock whose frames need no samples beyond their own; a remainder at the end makes one frame more."""

    def total_frames(self, samples: int) -> int:
        return -(-samples // self.frame_samples)


class Letters:
    """A vocabulary of two letters a token; tokens from `_SYMBOLS` on are the same at the start of a word."""

    marks: frozenset[int] = frozenset()
    eou_id: int | None = None

    def append(self, state: TextState, token: int) -> None:
        """Append one token to a text."""
        is_spaced = (token >= _SYMBOLS or state.at_word_start) and state.text
        state.text += (_SPACED if is_spaced else _PAIRS)[token % _SYMBOLS]
        state.at_word_start = False

    def start_utterance(self, state: TextState) -> None:
        """Make the next token begin a word."""
        state.at_word_start = True

    def finish(self, state: TextState) -> str:
        """Return the text; no bytes are ever held back."""
        return state.text

    def is_special(self, token: int) -> bool:
        """Return False: every token is text."""
        return False

    def starts_word(self, token: int) -> bool:
        """Return whether the token begins a word."""
        return token >= _SYMBOLS

    def is_closing(self, token: int) -> bool:
        """Return False: no token is punctuation."""
        return False

    def decode(self, tokens: Sequence[int]) -> str:
        """Return the text of a sequence."""
        state = TextState()
        for token in tokens:
            self.append(state, token)
        return state.text


@dataclass(frozen=True, slots=True)
class _Slept:
    """A step that ends at `ready_at`."""

    ready_at: float
    began_at: float
    findings: StepFindings


class NullSteps:
    """Steps without a model.

    Args:
        num_slots: number of streams that can be open at once.
        chunk_ms: audio of one token, a multiple of 80.
        step_ms: duration of each step.
        hears: whether turns are detected.
        audio_snapshots: whether snapshots need the audio before them, as much as the model `large` needs.
        rings: allocates the rings; None for memory of this process.
    """

    def __init__(
        self,
        num_slots: int,
        chunk_ms: int = DEFAULT_CHUNK_MS,
        step_ms: float = 0.0,
        *,
        hears: bool = True,
        audio_snapshots: bool = False,
        rings: AllocateRings | None = None,
    ) -> None:
        frame = _FRAME_MS * ENGINE_SAMPLE_RATE // 1000
        clock = NullClock(
            hop_samples=frame, lookahead_samples=frame, factor=1, chunk_frames=chunk_ms // _FRAME_MS
        )
        self.shape = StepShape(
            clock=clock,
            num_slots=num_slots,
            max_rows=num_slots,
            max_chunks=max(1, _STEP_MS // chunk_ms),
            frame_symbols=1,
            pages=NO_PAGES,
            overlaps=False,
            hears=hears,
            fingerprint=f"null-{chunk_ms}",
            reach_frames=-(-_REACH_FRAMES // clock.chunk_frames) * clock.chunk_frames
            if audio_snapshots
            else 0,
        )
        self.stats = EngineStats()
        ring_samples = (self.shape.max_chunks + _SPARE_CHUNKS) * clock.chunk_samples
        self.trees = NO_TREES
        self.rings = (rings or RingMemory.allocate)(num_slots, ring_samples)
        self._ring_samples = ring_samples
        # All rings as one array; a slot's pcm16 is the first half of its part.
        self._bytes = memoryview(self.rings.float32_SC).cast("B")  # type: ignore[arg-type]
        self._step_s = step_ms / 1000
        # Every token has confidence 1, and all audio is speech.
        most = self.shape.max_chunks
        self._confidences_BK = np.ones((num_slots, most), dtype=np.float32)
        self._frames_BK = np.tile(np.arange(most, dtype=np.int32) * clock.chunk_frames, (num_slots, 1))
        self._speech_BW = np.ones((num_slots, max_windows(most * clock.chunk_samples)), dtype=np.float32)
        # Tokens of each stream so far, as far as the starts of words depend on them.
        self._tokens = [0] * num_slots

    def reset(self, slots: Sequence[int], prompts: Sequence[int]) -> None:
        for slot in slots:
            self._tokens[slot] = 0

    def export(self, slot: int, kept: KeptFrames | None) -> Export:
        tokens = bytes([self._tokens[slot]])
        return lambda: {"tokens": memoryview(tokens)}

    def load(self, slot: int, kept: KeptFrames | None, state: Mapping[str, memoryview]) -> None:
        (tokens,) = state["tokens"]
        self._tokens[slot] = tokens % _TOKENS_PER_WORD

    def launch(self, rows_FB: NDArray[np.int32], table_BM: NDArray[np.int32]) -> Flight:
        began_at = time.perf_counter()
        clock, checksum, tokens = self.shape.clock, self._checksum, self._tokens
        chunk_frames, chunk_samples = clock.chunk_frames, clock.chunk_samples
        rows: list[list[int]] = []
        for slot, start, frames, total, _, is_float in rows_FB.T.tolist():
            begin, spoken, row = clock.frame_samples * start, tokens[slot], []
            for _ in range(-(-frames // chunk_frames)):
                end = begin + chunk_samples
                symbol = checksum(slot, begin, min(end, total), is_float) % _SYMBOLS
                row.append(symbol if spoken % _TOKENS_PER_WORD else symbol + _SYMBOLS)
                begin, spoken = end, spoken + 1
            tokens[slot] = spoken % _TOKENS_PER_WORD
            rows.append(row)
        counts, num_rows = list(map(len, rows)), len(rows)
        most = max(counts)
        if min(counts) < most:
            rows = [row + [0] * (most - len(row)) for row in rows]
        findings = StepFindings(
            num_symbols_B=np.array(counts, dtype=np.int32),
            symbols_BK=np.array(rows, dtype=np.int32),
            frames_BK=self._frames_BK[:num_rows, :most],
            confidences_BK=self._confidences_BK[:num_rows, :most],
            speech_BW=self._speech_BW[:num_rows],
        )
        return Flight(num_rows, _Slept(began_at + self._step_s, began_at, findings))

    def _checksum(self, slot: int, begin: int, end: int, is_float: bool) -> int:
        """Return the checksum of samples as pcm16, whatever their type and parts."""
        length = self._ring_samples
        at, size = begin % length, end - begin
        stop = at + size
        if is_float:
            # No more of the ring: the rest may be another stream's pcm16, whose bits may be no numbers.
            ring = self.rings.float32_SC[slot]
            parts = (_pcm16(ring[at : min(stop, length)]), _pcm16(ring[: max(0, stop - length)]))
            return zlib.crc32(parts[1], zlib.crc32(parts[0]))
        data, first = self._bytes, 4 * slot * length
        if stop <= length:
            return zlib.crc32(data[first + 2 * at : first + 2 * stop])
        checksum = zlib.crc32(data[first + 2 * at : first + 2 * length])
        return zlib.crc32(data[first : first + 2 * (stop - length)], checksum)

    def is_over(self, flight: Flight) -> bool:
        slept = flight.token
        assert isinstance(slept, _Slept)
        return time.perf_counter() >= slept.ready_at

    def wait(self, flight: Flight) -> StepFindings:
        slept = flight.token
        assert isinstance(slept, _Slept)
        left_s = slept.ready_at - time.perf_counter()
        if left_s > 0:
            time.sleep(left_s)  # stands for the device: the only intended sleep
        # The stages have equal parts of a step's time.
        stats, busy_s = self.stats, (time.perf_counter() - slept.began_at) / 4
        for stage in (stats.turn_detection, stats.pre_encode, stats.encode, stats.decode):
            stage.calls += 1
            stage.busy_s += busy_s
        return slept.findings


def _pcm16(samples: NDArray[np.float32]) -> bytes:
    """Return samples as pcm16. Samples beyond full scale wrap, so that two loud sounds still differ."""
    scaled = np.rint(samples * np.float64(32768))
    return np.mod(scaled, 65536).astype(np.uint16).tobytes()


class NullEngine(SpeechEngine):
    """The engine of the null backend.

    Args:
        num_slots, chunk_ms, step_ms: see `NullSteps`.
        turn_detection: whether turns are detected.
        turns_of: returns the turn detection settings of a stream's options.
        audio_snapshots, rings: see `NullSteps`.
    """

    def __init__(
        self,
        num_slots: int,
        chunk_ms: int = DEFAULT_CHUNK_MS,
        step_ms: float = 0.0,
        *,
        turn_detection: bool = True,
        audio_snapshots: bool = False,
        rings: AllocateRings | None = None,
        turns_of: Callable[[StreamOptions], TurnSettings] = lambda _: TurnSettings(),
    ) -> None:
        steps = NullSteps(
            num_slots,
            chunk_ms,
            step_ms,
            hears=turn_detection,
            audio_snapshots=audio_snapshots,
            rings=rings,
        )
        super().__init__(steps, Letters(), turns_of=turns_of)
