"""The reference engine: NeMo's modules behind the interface of an engine (`--backend nemo`).

For comparison, and for checkpoints that the native engine does not know.  Correct first: one chunk of a
stream in a step, streams of the same kind of chunk together in a batch, decoding one after another.
The outputs of a stream follow the same rule as the native engine's: one for each whole chunk of samples,
and one for its end.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from common.entries import StreamId
from common.options import StreamOptions
from gpu_worker.engine.clock import ChunkClock
from gpu_worker.engine.interface import (
    ENGINE_SAMPLE_RATE,
    EngineError,
    EngineStats,
    SnapshotMismatch,
    StreamFinished,
    StreamOutput,
)
from gpu_worker.engine.nemo_model import NemoModel, NemoState
from gpu_worker.engine.open_streams import OpenStreams
from gpu_worker.engine.outputs import chunk_output
from gpu_worker.engine.samples import Samples, float_samples
from gpu_worker.engine.snapshot import Snapshot
from gpu_worker.engine.transcript import Token, Transcript
from gpu_worker.turn.settings import TurnSettings
from gpu_worker.turn.stage import TurnJudge, TurnStage
from gpu_worker.turn.vad import SileroVad


@dataclass(slots=True)
class _Stream:
    """One open stream.  `recent` are its samples from `recent_start` on, as far back as a mel needs."""

    stream: StreamId
    slot: int
    options: StreamOptions
    transcript: Transcript
    language: str | None
    state: NemoState = field(default_factory=NemoState)
    recent: NDArray[np.float32] = field(default_factory=lambda: np.zeros(0, np.float32))
    recent_start: int = 0
    frames_done: int = 0
    mels_done: int = 0
    samples_decoded: int = 0
    total_samples: int | None = None
    ended: bool = False

    @property
    def samples_fed(self) -> int:
        return self.recent_start + len(self.recent)


@dataclass(frozen=True, slots=True)
class _Work:
    """The next output of a stream: mel frames `mels_done` .. `end_mel` - 1, `frames` encoder frames."""

    stream: _Stream
    end_mel: int
    frames: int
    end_sample: int
    is_final: bool


class NemoEngine:
    """See the module.

    Args:
        model: NeMo's model under its context.
        num_slots: streams that can be open at once.
        batch_size: rows of a call of the encoder.
        turn_detection: whether the speech detector runs at all.
        turn_settings: what a stream's options make of turn detection.
        judge: smart-turn, where it runs.
    """

    def __init__(
        self,
        model: NemoModel,
        *,
        num_slots: int,
        batch_size: int = 32,
        turn_detection: bool = True,
        turn_settings: Callable[[StreamOptions], TurnSettings] = lambda _: TurnSettings(),
        judge: TurnJudge | None = None,
    ) -> None:
        self._model = model
        self.clock = ChunkClock(
            model.hop_samples, model.window_samples // 2, model.factor, model.chunk_frames
        )
        self._batch_size = batch_size
        self._turn_detection = turn_detection
        self._turn_settings = turn_settings
        self._vad = SileroVad(num_slots + 1, model.device) if turn_detection else None
        self._fingerprint = model.fingerprint
        self._turns = TurnStage(judge, has_eou=model.tokenizer.eou_id is not None)
        self._streams: OpenStreams[_Stream] = OpenStreams(num_slots)
        self._stats = EngineStats()

    # ------------------------------------------------------------------ streams

    @property
    def capacity(self) -> int:
        return self._streams.capacity

    @property
    def stats(self) -> EngineStats:
        return self._stats

    def open(self, stream: StreamId, options: StreamOptions, snapshot: bytes | None = None) -> None:
        slot = self._streams.vacant_slot(stream)
        language = self._model.language(options.language)
        restored = Snapshot.from_bytes(snapshot, self._fingerprint) if snapshot is not None else None
        transcript = Transcript(
            self._model.tokenizer, self.clock.frame_samples / ENGINE_SAMPLE_RATE, with_words=options.words
        )
        state = _Stream(stream, slot, options, transcript, language)
        settings = self._turn_settings(options) if self._turn_detection else TurnSettings(enabled=False)
        turns = None
        if self._vad is not None:
            self._vad.reset(state.slot)
        if restored is not None:
            try:
                turns = self._load(state, restored)
            except (KeyError, ValueError) as error:
                raise SnapshotMismatch(f"The snapshot does not fit this engine: {error}.") from error
        self._turns.open(stream, settings, exported=turns)
        self._streams.add(state)
        self._note()

    def _load(self, state: _Stream, restored: Snapshot) -> bytes:
        """Fill a stream from a snapshot; returns the turn stage's part."""
        host, tensors = restored.host, restored.tensors
        state.frames_done = int(host["frames_done"])
        state.mels_done = int(host["mels_done"])
        state.recent_start = int(host["recent_start"])
        state.recent = tensors["recent"].numpy().copy()
        state.samples_decoded = state.samples_fed
        state.transcript.load(host["transcript"])
        state.state = NemoState.load(tensors, self._model.device)
        if self._vad is not None:
            self._vad.import_slot(state.slot, tensors["vad"])
        return tensors["turns"].numpy().tobytes()

    def feed(self, stream: StreamId, samples: Samples) -> None:
        state = self._streams.get(stream)
        if state.total_samples is not None:
            raise StreamFinished(f"Stream {stream} was finished; no samples can follow.")
        state.recent = np.concatenate([state.recent, float_samples(samples)])
        self._note()

    def finish(self, stream: StreamId) -> None:
        state = self._streams.get(stream)
        if state.total_samples is None:
            state.total_samples = state.samples_fed
            self._note()

    def close(self, stream: StreamId) -> None:
        self._forget(self._streams.get(stream))

    def snapshot(self, stream: StreamId) -> bytes:
        state = self._streams.get(stream)
        if state.ended:
            raise EngineError(f"Stream {stream} has ended; its final output is all that is left.")
        tensors = state.state.export()
        decoded = state.recent[: state.samples_decoded - state.recent_start]
        tensors["recent"] = torch.from_numpy(decoded.copy())
        tensors["turns"] = torch.frombuffer(bytearray(self._turns.export(stream)), dtype=torch.uint8)
        if self._vad is not None:
            tensors["vad"] = self._vad.export_slot(state.slot)
        host = {
            "frames_done": state.frames_done,
            "mels_done": state.mels_done,
            "recent_start": state.recent_start,
            "transcript": state.transcript.export(),
        }
        return Snapshot(self._fingerprint, host, tensors).to_bytes()

    def samples_decoded(self, stream: StreamId) -> int:
        return self._streams.get(stream).samples_decoded

    def samples_waiting(self, stream: StreamId) -> int:
        state = self._streams.get(stream)
        return state.samples_fed - state.samples_decoded

    def _forget(self, state: _Stream) -> None:
        self._streams.remove(state)
        self._turns.close(state.stream)
        self._note()

    def _note(self) -> None:
        works = [work for work in map(self._next, self._streams) if work is not None]
        self._stats.open_streams = len(self._streams)
        self._stats.ready_streams = len(works)
        self._stats.raw_chunks = sum(
            self.clock.whole_chunks(state.samples_fed) - state.frames_done // self.clock.chunk_frames
            for state in self._streams
            if not state.ended
        )

    # ------------------------------------------------------------------ steps

    def has_work(self) -> bool:
        return self._stats.ready_streams > 0 or self._turns.has_ready()

    def wait_s(self) -> float | None:
        return self._turns.wait_s()

    @torch.inference_mode()
    def step(self) -> Sequence[StreamOutput]:
        works = [work for work in map(self._next, self._streams) if work is not None]
        works = works[: self._batch_size]
        self._stats.in_flight = len(works)
        groups: dict[tuple[int, int, str | None], list[_Work]] = {}
        for work in works:
            stream = work.stream
            kind = (work.end_mel - stream.mels_done, stream.state.num_cached_mels, stream.language)
            groups.setdefault(kind, []).append(work)
        for group in groups.values():
            self._run(group)
        self._stats.steps += bool(works)
        outputs = self._turns.drain()
        for output in outputs:
            if output.is_final:
                self._forget(self._streams.get(output.stream))
        self._stats.turn_detection_depth = self._turns.num_held
        self._stats.turn_detection_streams = self._turns.num_waiting_streams
        self._note()
        return outputs

    def _next(self, state: _Stream) -> _Work | None:
        clock = self.clock
        if state.ended:
            return None
        chunks = state.frames_done // clock.chunk_frames
        if clock.whole_chunks(state.samples_fed) > chunks:
            frames = state.frames_done + clock.chunk_frames
            end_mel = clock.factor * (frames - 1) + 1
            return _Work(state, end_mel, clock.chunk_frames, clock.samples_of_frames(frames), is_final=False)
        if state.total_samples is None:
            return None
        total = state.total_samples
        frames = clock.total_frames(total) - state.frames_done
        return _Work(state, max(total // clock.hop_samples, state.mels_done), frames, total, is_final=True)

    def _run(self, group: list[_Work]) -> None:
        """Decode one chunk of each of the group's streams, which are all of one kind."""
        started = time.perf_counter()
        # A remainder may have mel frames and complete no encoder frame, or none of either.
        encoded: Tensor | None = None
        if group[0].frames > 0 and group[0].end_mel > group[0].stream.mels_done:
            mels = [self._mels(work) for work in group]
            self._count("pre_encode", started, len(group))
            started = time.perf_counter()
            states = [work.stream.state for work in group]
            encoded = self._model.encode(states, mels, group[0].stream.language)
            self._count("encode", started, sum(work.frames for work in group))
        for row, work in enumerate(group):
            started = time.perf_counter()
            tokens: list[Token] = []
            if encoded is not None:
                frames_TD = encoded[row, : work.frames]
                tokens = self._model.decode(work.stream.state, frames_TD, work.stream.frames_done)
            self._count("decode", started, work.frames)
            self._stats.tokens += len(tokens)
            self._give(work, tokens)

    def _count(self, stage: str, started: float, units: int) -> None:
        stats = getattr(self._stats, stage)
        stats.calls += 1
        stats.units += units
        stats.busy_s += time.perf_counter() - started

    def _mels(self, work: _Work) -> Tensor:
        state = work.stream
        end = work.end_sample - state.recent_start
        signal = torch.from_numpy(state.recent[:end])
        return self._model.mels(signal, state.recent_start, state.mels_done, work.end_mel)

    def _give(self, work: _Work, tokens: list[Token]) -> None:
        state = work.stream
        audio = state.recent[
            state.samples_decoded - state.recent_start : work.end_sample - state.recent_start
        ]
        speech = self._detect(state, audio)
        state.frames_done += work.frames
        state.mels_done = work.end_mel
        state.samples_decoded = work.end_sample
        state.ended = work.is_final
        output = chunk_output(state.stream, state.transcript, tokens, work.end_sample, is_final=work.is_final)
        ends = [token.frame for token in tokens if token.token == self._model.tokenizer.eou_id]
        self._turns.push(output, speech, ends, audio if self._turns.needs_samples(state.stream) else None)
        keep = min(self._model.signal_start(state.mels_done), state.samples_decoded)
        if keep > state.recent_start:
            state.recent = state.recent[keep - state.recent_start :].copy()
            state.recent_start = keep

    def _detect(self, state: _Stream, audio: NDArray[np.float32]) -> tuple[float, ...]:
        if self._vad is None or not self._turns.is_enabled(state.stream) or not len(audio):
            return ()
        started = time.perf_counter()
        device = self._model.device
        samples = torch.from_numpy(audio.copy()).to(device).unsqueeze(0)
        counts, slots = torch.tensor([len(audio)], device=device), torch.tensor([state.slot], device=device)
        probs, windows = self._vad.run(samples, counts, slots)
        count = int(windows[0])
        self._count("turn_detection", started, count)
        return tuple(probs[0, :count].tolist())

    def check_integrity(self) -> None:
        self._streams.check_integrity()
        for state in self._streams:
            assert state.recent_start <= state.samples_decoded <= state.samples_fed, "samples are lost"
