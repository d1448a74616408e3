"""The engine: slots and pages for streams, and `step` = schedule, run, update.

Central invariant: the outputs of a stream are a function of its samples and options alone.  Each whole
chunk that the samples complete by themselves gives one output, and the end of the stream gives one more,
with the frames that are left (none to a whole chunk).  How many chunks a step decodes, and with which
other streams, changes nothing.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import numpy as np
import torch
from numpy.typing import NDArray

from common.entries import StreamId
from common.options import StreamOptions
from gpu_worker.engine.batch import Batch, Batcher
from gpu_worker.engine.block_manager import BlockManager
from gpu_worker.engine.clock import ChunkClock
from gpu_worker.engine.interface import (
    ENGINE_SAMPLE_RATE,
    EngineError,
    EngineStats,
    OutOfPages,
    SnapshotMismatch,
    StreamFinished,
    StreamOutput,
    UnsupportedOption,
)
from gpu_worker.engine.model_runner import BatchSizes, ModelRunner, RowResult, StepRunner
from gpu_worker.engine.open_streams import OpenStreams
from gpu_worker.engine.outputs import chunk_output, failed_output
from gpu_worker.engine.samples import Samples, float_samples
from gpu_worker.engine.scheduler import Row, Schedule, Scheduler
from gpu_worker.engine.snapshot import Snapshot, model_fingerprint
from gpu_worker.engine.stream import Stream
from gpu_worker.engine.transcript import Transcript
from gpu_worker.model.config import ModelConfig
from gpu_worker.model.errors import ModelConfigError
from gpu_worker.model.loaded_model import LoadedModel
from gpu_worker.model.model import StreamingModel
from gpu_worker.turn.settings import TurnSettings
from gpu_worker.turn.stage import TurnJudge, TurnStage
from gpu_worker.turn.vad import SileroVad, windows_of

# Louder samples overflow the power spectrum; full scale is 1.0.
_MAX_SAMPLE = 1e6


@dataclass(frozen=True, slots=True)
class EngineConfig:
    """Sizes and switches of an engine.

    num_slots: streams that can be open at once.
    context: (left, right) attention context; None for the checkpoint's default.
    batch_sizes: rows of a call of each stage; a step has as many rows as `encode`.
    page_frames: encoder frames of a page; 0 for one page a stream as long as its ring.
    num_pages: pages of the cache; 0 for enough for every slot.
    max_step_frames: encoder frames of one stream in a step, at least a chunk in any case.
    reset_at_end: whether `<EOU>` and `<EOB>` put the predictor back to its start.
    turn_detection: whether the speech detector runs at all.
    turn_settings: what a stream's options make of turn detection.
    """

    num_slots: int
    context: tuple[int, int] | None = None
    batch_sizes: BatchSizes = field(default_factory=lambda: BatchSizes(32, 32, 32))
    page_frames: int = 0
    num_pages: int = 0
    max_step_frames: int = 8
    reset_at_end: bool = True
    turn_detection: bool = True
    turn_settings: Callable[[StreamOptions], TurnSettings] = lambda _: TurnSettings()

    def turns_of(self, options: StreamOptions) -> TurnSettings:
        """How the turns of a stream with these options are detected."""
        return self.turn_settings(options) if self.turn_detection else TurnSettings(enabled=False)


def prompt_of(config: ModelConfig, options: StreamOptions) -> int:
    """Index of a stream's language prompt.  Raises UnsupportedOption."""
    try:
        return config.prompt_index(options.language)
    except ModelConfigError as error:
        raise UnsupportedOption(str(error)) from error


class NativeEngine:
    """The engine around this package's own model."""

    def __init__(self, loaded: LoadedModel, config: EngineConfig, *, judge: TurnJudge | None = None) -> None:
        """Build the model and its state.

        Args:
            loaded: checkpoint on its device.
            config: sizes and switches.
            judge: smart-turn, where it runs.
        """
        model = StreamingModel(loaded, config.context, reset_at_end=config.reset_at_end)
        mel = loaded.config.mel
        self.config = config
        self.clock = ChunkClock(
            mel.hop_length, mel.win_length // 2, loaded.config.subsampling_factor, model.chunk_frames
        )
        self._left_frames = model.left_frames
        self._frame_s = self.clock.frame_samples / ENGINE_SAMPLE_RATE
        self._tokenizer = loaded.tokenizer
        self._fingerprint = model_fingerprint(loaded, model.context, reset_at_end=config.reset_at_end)
        self._stats = EngineStats()

        max_chunks = max(1, config.max_step_frames // model.chunk_frames)
        ring_frames = model.left_frames + max_chunks * model.chunk_frames
        page_frames = config.page_frames or ring_frames
        ring_pages = -(-ring_frames // page_frames)
        num_pages = config.num_pages or config.num_slots * ring_pages
        max_rows = min(config.batch_sizes.encode, config.num_slots)
        self._blocks = BlockManager(num_pages, page_frames, ring_pages, config.num_slots)
        self._scheduler = Scheduler(max_rows, max_chunks, model.chunk_frames)
        self._batcher = Batcher(
            self.clock, self._blocks, max_rows=max_rows, max_chunks=max_chunks, device=model.device
        )
        self._runner: StepRunner = ModelRunner(
            model,
            num_slots=config.num_slots,
            num_pages=num_pages,
            page_frames=page_frames,
            batch_sizes=config.batch_sizes,
            vad=SileroVad(config.num_slots + 1, model.device) if config.turn_detection else None,
            stats=self._stats,
        )
        self._turns = TurnStage(judge, has_eou=loaded.config.eou_id is not None)
        self._eou_id = loaded.config.eou_id
        self._model_config = loaded.config
        self._streams: OpenStreams[Stream] = OpenStreams(config.num_slots)
        self._num_opened = 0

    # ------------------------------------------------------------------ streams

    @property
    def capacity(self) -> int:
        return self.config.num_slots

    @property
    def stats(self) -> EngineStats:
        return self._stats

    def open(self, stream: StreamId, options: StreamOptions, snapshot: bytes | None = None) -> None:
        slot = self._streams.vacant_slot(stream)
        prompt_of(self._model_config, options)
        restored = Snapshot.from_bytes(snapshot, self._fingerprint) if snapshot is not None else None
        self._num_opened += 1
        transcript = Transcript(self._tokenizer, self._frame_s, with_words=options.words)
        state = Stream(stream, slot, self._num_opened, options, self.clock, transcript)
        self._streams.add(state)
        try:
            self._start(state, restored)
        except BaseException:
            self._forget(state)
            raise
        self._stats.open_streams = len(self._streams)

    @torch.inference_mode()
    def _start(self, state: Stream, restored: Snapshot | None) -> None:
        runner, slot = self._runner, state.slot
        settings = self.config.turns_of(state.options)
        if restored is None:
            runner.reset(slot, prompt_of(self._model_config, state.options))
            self._turns.open(state.stream, settings)
            return
        try:
            host, tensors = restored.host, restored.tensors
            state.frames_done = int(host["frames_done"])
            state.samples_taken = int(host["samples_taken"])
            state.transcript.load(host["transcript"])
            self._blocks.grow(slot, state.frames_done)
            runner.load(slot, *self._kept_frames(state), tensors)
            self._turns.open(state.stream, settings, exported=tensors["turns"].numpy().tobytes())
        except (KeyError, ValueError) as error:
            raise SnapshotMismatch(f"The snapshot does not fit this engine: {error}.") from error

    def feed(self, stream: StreamId, samples: Samples) -> None:
        state = self._streams.get(stream)
        if state.total_samples is not None:
            raise StreamFinished(f"Stream {stream} was finished; no samples can follow.")
        checked = float_samples(samples)
        waiting = state.chunks_waiting
        state.queue.append(np.clip(checked, -_MAX_SAMPLE, _MAX_SAMPLE))
        self._stats.raw_chunks += state.chunks_waiting - waiting
        self._note_ready(state)

    def finish(self, stream: StreamId) -> None:
        state = self._streams.get(stream)
        if state.total_samples is None:
            state.total_samples = state.samples_fed
            self._note_ready(state)

    def close(self, stream: StreamId) -> None:
        self._forget(self._streams.get(stream))

    def samples_decoded(self, stream: StreamId) -> int:
        return self._streams.get(stream).samples_decoded

    def samples_waiting(self, stream: StreamId) -> int:
        return len(self._streams.get(stream).queue)

    @torch.inference_mode()
    def snapshot(self, stream: StreamId) -> bytes:
        state = self._streams.get(stream)
        if state.ended:
            raise EngineError(f"Stream {stream} has ended; its final output is all that is left.")
        tensors = self._runner.export(state.slot, *self._kept_frames(state))
        turns = self._turns.export(stream)
        tensors["turns"] = torch.frombuffer(bytearray(turns), dtype=torch.uint8)
        host = {
            "frames_done": state.frames_done,
            "samples_taken": state.samples_taken,
            "transcript": state.transcript.export(),
        }
        return Snapshot(self._fingerprint, host, tensors).to_bytes()

    def _kept_frames(self, state: Stream) -> tuple[torch.Tensor, torch.Tensor]:
        """Page and offset of the frames whose keys and values later chunks can still see."""
        first = max(0, state.frames_done - self._left_frames)
        frames = np.arange(first, state.frames_done, dtype=np.int64)
        pages, offsets = self._blocks.locate(state.slot, frames)
        return torch.from_numpy(pages), torch.from_numpy(offsets)

    def _note_ready(self, state: Stream) -> None:
        if state.is_ready:
            self._scheduler.add(state.stream)
        self._stats.ready_streams = len(self._scheduler)

    def _forget(self, state: Stream) -> None:
        """Give back all that a stream holds."""
        self._streams.remove(state)
        self._scheduler.remove(state.stream)
        self._turns.close(state.stream)
        self._stats.raw_chunks -= state.chunks_waiting
        self._blocks.release(state.slot)
        self._stats.open_streams = len(self._streams)
        self._stats.ready_streams = len(self._scheduler)

    # ------------------------------------------------------------------ steps

    def has_work(self) -> bool:
        return len(self._scheduler) > 0 or self._turns.has_ready()

    def wait_s(self) -> float | None:
        return self._turns.wait_s()

    @torch.inference_mode()
    def step(self) -> Sequence[StreamOutput]:
        failed: list[StreamOutput] = []
        schedule = self._schedule(failed)
        if schedule.rows:
            streams = [self._streams.get(row.stream) for row in schedule.rows]
            before = sum(stream.chunks_waiting for stream in streams)
            batch = self._batcher.pack(schedule, streams)
            self._stats.in_flight = len(streams)
            listens = tuple(self._turns.is_enabled(stream.stream) for stream in streams)
            results = self._runner.run(batch, listens)
            self._stats.steps += 1
            self._update(batch, results)
            self._stats.raw_chunks += sum(stream.chunks_waiting for stream in streams) - before
        outputs = failed + self._turns.drain()
        for output in outputs:
            if output.is_final:
                self._forget(self._streams.get(output.stream))
        self._stats.ready_streams = len(self._scheduler)
        self._stats.turn_detection_depth = self._turns.num_held
        self._stats.turn_detection_streams = self._turns.num_waiting_streams
        return outputs

    def _schedule(self, failed: list[StreamOutput]) -> Schedule:
        """Plan a step whose rows all have their pages; sheds the newest streams when pages run out."""
        while True:
            schedule = self._scheduler.schedule(lambda stream: self._streams.get(stream).demand())
            if self._reserve(schedule, failed):
                return schedule

    def _reserve(self, schedule: Schedule, failed: list[StreamOutput]) -> bool:
        for row in schedule.rows:
            state = self._streams.get(row.stream)
            frames = row.chunks * self.clock.chunk_frames + row.remainder_frames
            try:
                self._blocks.grow(state.slot, state.frames_done + frames)
            except OutOfPages as error:
                # Only who has pages, or wants one, makes room by going.
                holders = [other for other in self._streams if self._blocks.pages(other.slot)]
                newest = max((state, *holders), key=lambda stream: stream.order)
                failed.append(failed_output(newest.stream, newest.transcript, newest.samples_decoded, error))
                self._forget(newest)
                return False
        return True

    def _update(self, batch: Batch, results: list[RowResult]) -> None:
        """Turn what a step found into one output for each chunk, and move the streams on."""
        for index, (row, state, result) in enumerate(
            zip(batch.schedule.rows, batch.streams, results, strict=True)
        ):
            audio = None
            if self._turns.needs_samples(state.stream):
                lead = batch.leads[index]
                audio = batch.audio_BN[index, lead : lead + batch.counts[index]].cpu().numpy()
            self._give_chunks(row, state, result, audio)
        self._scheduler.done(
            batch.schedule, lambda stream: stream in self._streams and self._streams.get(stream).is_ready
        )

    def _give_chunks(
        self, row: Row, state: Stream, result: RowResult, audio: NDArray[np.float32] | None
    ) -> None:
        tokens, speech = list(result.tokens), result.speech
        first_sample = start_sample = state.samples_decoded
        stream, listens = state.stream, self._turns.is_enabled(state.stream)
        for number in range(row.chunks + row.ends):
            is_final = number == row.chunks
            frames = row.remainder_frames if is_final else self.clock.chunk_frames
            state.frames_done += frames
            state.ended = is_final
            end_sample = state.samples_decoded
            count = 0
            while count < len(tokens) and tokens[count].frame < state.frames_done:
                count += 1
            chunk_tokens, tokens = tokens[:count], tokens[count:]
            windows = windows_of(start_sample, end_sample) if listens else 0
            chunk_speech, speech = speech[:windows], speech[windows:]
            output = chunk_output(stream, state.transcript, chunk_tokens, end_sample, is_final=is_final)
            self._turns.push(
                output,
                chunk_speech,
                [token.frame for token in chunk_tokens if token.token == self._eou_id],
                None if audio is None else audio[start_sample - first_sample : end_sample - first_sample],
            )
            start_sample = end_sample

    def check_integrity(self) -> None:
        self._streams.check_integrity()
        self._blocks.check_integrity()
        for slot in self._streams.free_slots:
            assert not self._blocks.pages(slot), f"the free slot {slot} has pages"
        ring = self._blocks.ring_pages * self._blocks.page_frames
        waiting = 0
        for state in self._streams:
            stream = state.stream
            assert (stream in self._scheduler) == state.is_ready, f"stream {stream} is in the wrong line"
            held = len(self._blocks.pages(state.slot)) * self._blocks.page_frames
            assert held >= min(state.frames_done, ring), f"stream {stream} lacks pages"
            waiting += state.chunks_waiting
        assert waiting == self._stats.raw_chunks, "the count of waiting chunks is wrong"
        assert len(self._scheduler) <= len(self._streams), "a closed stream is in the line"
