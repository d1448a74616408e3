"""An engine without a model, to load the path around it: one token and one result a chunk.

Everything is a function of the audio: a token is a checksum of its chunk's samples, so a sample that
was lost, repeated or moved changes the text. Never a default; what it says is no transcript.
"""

from __future__ import annotations

import time
import zlib
from collections import deque
from typing import TYPE_CHECKING, Final

import orjson

from common.entries import StreamId
from common.messages import Word
from common.options import StreamOptions
from gpu_worker.engine.interface import (
    ENGINE_SAMPLE_RATE,
    EngineFull,
    EngineStats,
    SnapshotMismatch,
    StreamFinished,
    StreamOutput,
    UnknownStream,
)
from gpu_worker.engine.samples import Samples, float_samples

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

DEFAULT_CHUNK_MS: Final = 160
_FRAME_SAMPLES: Final = ENGINE_SAMPLE_RATE * 80 // 1000
_LETTERS: Final = 26
_TOKENS_PER_WORD: Final = 3
# Chunks of one stream that a step takes, so that a stream that is behind catches up in larger steps.
_MAX_CHUNKS: Final = 8
_SNAPSHOT_VERSION: Final = 1


class _Stream:
    """State of one stream: what waits, and what was said."""

    __slots__ = ("finished", "options", "parts", "samples_decoded", "text", "tokens", "waiting")

    def __init__(self, options: StreamOptions) -> None:
        self.options = options
        self.parts: deque[NDArray[np.float32]] = deque()
        self.waiting = 0
        self.finished = False
        self.samples_decoded = 0
        self.tokens = 0
        self.text = ""

    def take(self, samples: int) -> int:
        """Remove `samples` from the queue and give their checksum, whatever parts they came in."""
        self.waiting -= samples
        if len(self.parts[0]) == samples:
            return zlib.crc32(self.parts.popleft().data)
        checksum = 0
        while samples:
            part = self.parts[0]
            if len(part) <= samples:
                checksum = zlib.crc32(part.data, checksum)
                samples -= len(part)
                self.parts.popleft()
            else:
                checksum = zlib.crc32(part[:samples].data, checksum)
                self.parts[0] = part[samples:]
                samples = 0
        return checksum


class NullEngine:
    """The null engine.

    capacity: streams open at once. chunk_ms: audio of one token. step_ms: time that each step takes.
    """

    def __init__(self, capacity: int, chunk_ms: int = DEFAULT_CHUNK_MS, step_ms: float = 0.0) -> None:
        self.capacity: Final = capacity
        self.stats = EngineStats()
        self._chunk_samples = chunk_ms * ENGINE_SAMPLE_RATE // 1000
        self._frames_per_chunk = max(1, self._chunk_samples // _FRAME_SAMPLES)
        self._step_s = step_ms / 1000
        self._streams: dict[StreamId, _Stream] = {}
        # Insertion order is the order of service; no step looks at a stream without work.
        self._ready: dict[StreamId, _Stream] = {}

    def open(self, stream: StreamId, options: StreamOptions, snapshot: bytes | None = None) -> None:
        """See `Engine.open`."""
        if stream in self._streams:
            raise ValueError(f"stream {stream} is open already")
        if len(self._streams) >= self.capacity:
            raise EngineFull(f"all {self.capacity} slots are taken")
        state = _Stream(options)
        if snapshot is not None:
            self._restore(state, snapshot)
        self._streams[stream] = state
        self.stats.open_streams = len(self._streams)

    def _restore(self, state: _Stream, snapshot: bytes) -> None:
        try:
            version, chunk, state.samples_decoded, state.tokens, state.text = orjson.loads(snapshot)
        except ValueError as error:
            raise SnapshotMismatch(f"no snapshot of the null engine: {error}") from error
        if (version, chunk) != (_SNAPSHOT_VERSION, self._chunk_samples):
            raise SnapshotMismatch("a snapshot of another version or chunk size")

    def feed(self, stream: StreamId, samples: Samples) -> None:
        """See `Engine.feed`."""
        state = self._open(stream)
        if state.finished:
            raise StreamFinished(f"stream {stream} was finished")
        if not len(samples):
            return
        state.parts.append(float_samples(samples))
        before = state.waiting // self._chunk_samples
        state.waiting += len(samples)
        self.stats.raw_chunks += state.waiting // self._chunk_samples - before
        if state.waiting >= self._chunk_samples:
            self._ready[stream] = state
            self.stats.ready_streams = len(self._ready)

    def finish(self, stream: StreamId) -> None:
        """See `Engine.finish`."""
        state = self._open(stream)
        state.finished = True
        self._ready[stream] = state
        self.stats.ready_streams = len(self._ready)

    def close(self, stream: StreamId) -> None:
        """See `Engine.close`."""
        state = self._open(stream)
        self.stats.raw_chunks -= state.waiting // self._chunk_samples
        self._forget(stream)

    def snapshot(self, stream: StreamId) -> bytes:
        """See `Engine.snapshot`."""
        state = self._open(stream)
        return orjson.dumps(
            [_SNAPSHOT_VERSION, self._chunk_samples, state.samples_decoded, state.tokens, state.text]
        )

    def samples_decoded(self, stream: StreamId) -> int:
        """See `Engine.samples_decoded`."""
        return self._open(stream).samples_decoded

    def samples_waiting(self, stream: StreamId) -> int:
        """See `Engine.samples_waiting`."""
        return self._open(stream).waiting

    def has_work(self) -> bool:
        """See `Engine.has_work`."""
        return bool(self._ready)

    def wait_s(self) -> float | None:
        """See `Engine.wait_s`."""
        return None

    def step(self) -> list[StreamOutput]:
        """See `Engine.step`."""
        if not self._ready:
            return []
        started = time.perf_counter()
        batch = list(self._ready.items())
        self._ready.clear()
        self.stats.in_flight = len(batch)
        self.stats.ready_streams = 0
        if self._step_s:
            time.sleep(self._step_s)  # stands for the device: the one sleep that is meant
        outputs: list[StreamOutput] = []
        chunks = 0
        for stream, state in batch:
            for _ in range(_MAX_CHUNKS):
                if state.waiting < self._chunk_samples:
                    break
                outputs.append(self._decode(stream, state, self._chunk_samples, is_final=False))
                self.stats.raw_chunks -= 1
                chunks += 1
            if state.waiting >= self._chunk_samples:
                self._ready[stream] = state
            elif state.finished:
                chunks += state.waiting > 0
                outputs.append(self._decode(stream, state, state.waiting, is_final=True))
                self._forget(stream)
        self._count(chunks, time.perf_counter() - started)
        return outputs

    def _decode(self, stream: StreamId, state: _Stream, samples: int, *, is_final: bool) -> StreamOutput:
        start = state.samples_decoded
        token_ids: tuple[int, ...] = ()
        words: tuple[Word, ...] | None = () if state.options.words else None
        if samples:
            token = state.take(samples) % (_LETTERS * _LETTERS)
            letters = chr(97 + token // _LETTERS) + chr(97 + token % _LETTERS)
            if state.tokens and state.tokens % _TOKENS_PER_WORD == 0:
                state.text += " "
            state.text += letters
            state.tokens += 1
            token_ids = (token,)
            if words is not None:
                end = start + samples
                words = (Word(letters, start / ENGINE_SAMPLE_RATE, end / ENGINE_SAMPLE_RATE, 1.0),)
        state.samples_decoded = start + samples
        first = start == 0 and samples > 0
        return StreamOutput(
            stream=stream,
            samples_decoded=state.samples_decoded,
            token_ids=token_ids,
            confidence_scores=(1.0,) * len(token_ids),
            token_frames=(start // _FRAME_SAMPLES,) * len(token_ids),
            text=state.text,
            last_state="speech" if state.samples_decoded else None,
            turn_detection="end_of_utterance" if is_final else "start_of_utterance" if first else "running",
            is_final=is_final,
            is_turn_event=first or is_final,
            words=words,
            changed=bool(token_ids) or is_final,
        )

    def _count(self, chunks: int, busy_s: float) -> None:
        stats = self.stats
        stats.steps += 1
        stats.tokens += chunks
        stats.ready_streams = len(self._ready)
        for stage, units in (
            (stats.turn_detection, chunks),
            (stats.pre_encode, chunks),
            (stats.encode, chunks * self._frames_per_chunk),
            (stats.decode, chunks * self._frames_per_chunk),
        ):
            stage.calls += 1
            stage.units += units
            stage.busy_s += busy_s / 4

    def check_integrity(self) -> None:
        """See `Engine.check_integrity`."""
        assert len(self._streams) <= self.capacity
        assert self.stats.open_streams == len(self._streams)
        for stream, state in self._streams.items():
            assert state.waiting == sum(len(part) for part in state.parts)
            has_work = state.finished or state.waiting >= self._chunk_samples
            assert has_work == (stream in self._ready)
        waiting = sum(state.waiting // self._chunk_samples for state in self._streams.values())
        assert self.stats.raw_chunks == waiting

    def _open(self, stream: StreamId) -> _Stream:
        try:
            return self._streams[stream]
        except KeyError:
            raise UnknownStream(f"stream {stream} is not open") from None

    def _forget(self, stream: StreamId) -> None:
        del self._streams[stream]
        self._ready.pop(stream, None)
        self.stats.open_streams = len(self._streams)
        self.stats.ready_streams = len(self._ready)
