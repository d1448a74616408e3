"""The thread that owns the engine: it applies the commands of other threads, and steps while there is work.

It sleeps on a condition. Commands wake it, and so does the clock where the engine waits for more rows or for
a verdict. `busy_s` is the duration of its present turn, or of the step that the device runs meanwhile: a hung
device shows there, and the worker's lease is then not renewed.
"""

from __future__ import annotations

import logging
import threading
import time
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Final

from common.entries import StreamId
from common.errors import ClientFault, ErrorCode, StreamError
from common.monitoring.metrics import WorkerMetrics
from common.phrases import Phrase
from gpu_worker.cold_start import acknowledgement, base_at
from gpu_worker.engine.interface import (
    Engine,
    EngineError,
    SnapshotMismatch,
    StreamOutput,
    StreamSnapshot,
    UnknownStream,
    UnsupportedOption,
)
from gpu_worker.engine.snapshot import phrases_in
from gpu_worker.part import Part
from gpu_worker.pipeline.checkpoints import CheckpointQueue
from gpu_worker.pipeline.engine_events import (
    Command,
    Decoded,
    Drop,
    Dropped,
    Event,
    EventSink,
    Fail,
    Failed,
    Feed,
    Finalize,
    Finish,
    HandedOver,
    HandOver,
    MakeRoom,
    Open,
    Opened,
    ReplacePhrases,
    SnapshotTaken,
    worker_failed,
)
from gpu_worker.pipeline.flow import StreamFlow
from gpu_worker.segments import Segments, Waiting

if TYPE_CHECKING:
    from gpu_worker.engine.slots.samples import Samples

logger = logging.getLogger(__name__)

_WAIT_S: Final = 1.0
# Time for commands between two steps. A lane loads a snapshot through its group, which takes half a step of
# the device: a takeover of a thousand streams would take a turn of seconds, and count as a hang.
_COMMANDS_S: Final = 0.03


class EngineThread(Part):
    """Owns the engine.

    replay_s: audio of a stream that is kept for a replay, in seconds; its snapshots are half of it apart.
    on_failure: called in this thread, last, with the engine's exception.
    """

    def __init__(
        self,
        engine: Engine,
        sink: EventSink,
        replay_s: float,
        metrics: WorkerMetrics,
        on_failure: Callable[[BaseException], None],
    ) -> None:
        super().__init__("engine")
        self._engine = engine
        self._metrics = metrics
        self._sink = sink
        self._checkpoints = CheckpointQueue(replay_s)
        self._on_failure = on_failure
        self._inbox: deque[Command] = deque()
        self._wake = threading.Condition()
        self._busy_since: float | None = None
        self._between_turns = False
        self._at_rest = False
        self._flows: dict[StreamId, StreamFlow] = {}
        # Streams without their snapshot: number of samples before the checkpoint that still come.
        self._skipped: dict[StreamId, int] = {}
        self._segments = Segments()

    def put(self, *commands: Command) -> None:
        """Queue commands, in order. Bounded by the senders: see `StreamFlow.held`."""
        if commands:
            with self._wake:
                self._inbox.extend(commands)
                self._wake.notify()

    def wake(self) -> None:
        """Make the thread check again whether the engine has work (an answer from elsewhere came)."""
        with self._wake:
            self._wake.notify()

    def request_stop(self) -> None:
        """Begin to end, after the queued commands."""
        super().request_stop()
        self.wake()

    @property
    def busy_s(self) -> float:
        """Return seconds since the present turn or step began; 0 while the thread waits for work or Redis."""
        since = self._busy_since
        return 0.0 if since is None else time.monotonic() - since

    @property
    def between_turns(self) -> bool:
        """Whether the thread waits: for work, or for steps that the device runs."""
        return self._between_turns

    @property
    def idle(self) -> bool:
        """Whether all queued commands have been applied, and the engine has no work left from them."""
        with self._wake:
            return not self._inbox and self._at_rest

    def _run(self) -> None:
        try:
            while self._turn():
                pass
        except BaseException as error:
            # After any exception no stream of this worker goes on: better ended than silent.
            logger.exception("the engine failed")
            self._on_failure(error)

    def _turn(self) -> bool:
        """Apply the queued commands, and step once; return False when it is time to end."""
        with self._wake:
            while not self._inbox and not self._engine.has_work():
                if self._stop.is_set():
                    return False
                is_stepping, wait_s = self._engine.is_stepping(), self._engine.wait_s()
                if not is_stepping:
                    self._busy_since = None
                # Work that waits for a while, as recordings wait for live chunks, is still to be done.
                self._at_rest = wait_s is None and not is_stepping
                self._between_turns = True
                self._wake.wait(_WAIT_S if wait_s is None else min(_WAIT_S, wait_s))
                self._between_turns = False
            self._at_rest = False
            commands = list(self._inbox)
            self._inbox.clear()
        # A step that the device runs began before: commands that come meanwhile are no sign of its life.
        if self._busy_since is None or not self._engine.is_stepping():
            self._busy_since = time.monotonic()
        self._apply_some(commands)
        if self._engine.has_work():
            self._step()
        return True

    def _apply_some(self, commands: Sequence[Command]) -> None:
        """Apply commands in order, for about `_COMMANDS_S`; those that are left go back into the queue."""
        since = time.monotonic()
        for done, command in enumerate(commands, 1):
            self._apply(command)
            if done < len(commands) and time.monotonic() - since > _COMMANDS_S:
                with self._wake:
                    self._inbox.extendleft(reversed(commands[done:]))
                return

    def _step(self) -> None:
        started = time.monotonic()
        outputs = self._engine.step()
        self._busy_since = now = time.monotonic()
        self._metrics.step_seconds.observe(now - started)
        self._metrics.step_streams.observe(self._engine.stats.in_flight)
        if not outputs:
            return
        outputs = self._segments.told(outputs)
        self._tell(Decoded(outputs))
        waited: list[tuple[StreamFlow, Waiting]] = []
        for output in outputs:
            if output.is_final or output.failed is not None:
                self._drop(output.stream)
                continue
            if output.from_finalize:
                waited.append((self._flows[output.stream], self._begin_next_part(output)))
            self._checkpoints.decoded(output.stream, output.samples_decoded)
        self._take_snapshots()
        for flow, commands in waited:  # only now: they may end the next part, which has no snapshot then
            self._go_on(flow, commands)

    def _tell(self, event: Event) -> None:
        """Emit an event. While the sink is full, this waits for Redis, which is no hang of the engine."""
        since, started = self._busy_since, time.monotonic()
        self._busy_since = None
        self._sink.put(event)
        now = time.monotonic()
        self._busy_since = now if since is None else since + now - started

    def _take_snapshots(self) -> None:
        for stream in self._checkpoints.next_ones(self._engine.is_under_way):
            if not self._sink.takes_snapshot():
                break
            # Those of other Redis servers do not wait for the stream's server.
            if self._sink.takes_snapshot(stream):
                self._snapshot(self._flows[stream], release=False)
            else:
                self._checkpoints.put_off(stream)

    def _snapshot(self, flow: StreamFlow, *, release: bool) -> None:
        """Emit a snapshot for the next owner; without it, a stream is replayed from an earlier one."""
        snapshot: StreamSnapshot | None = None
        try:
            snapshot = self._engine.snapshot(flow.stream)
        except EngineError as error:
            # A stream at its end has no snapshot, nor has one between two parts. The end may have come with
            # the running step, for which the engine waits before it takes a snapshot; the next step
            # reports it.
            logger.info("no snapshot: %s", error, extra={"stream_id": flow.stream})
        part = self._segments.first_sample(flow.stream)
        if snapshot is None or not (snapshot.samples_decoded or self._segments.is_finalized(flow.stream)):
            self._checkpoints.put_off(flow.stream)
            if release:
                self._tell(Dropped(flow))
            return
        samples, to_bytes = part + snapshot.samples_decoded, snapshot.to_bytes
        self._checkpoints.taken(flow.stream, samples)
        if release:
            # Serialized now: the slot will be another stream's, and all of these go before any other opens.
            data = to_bytes()
            to_bytes = lambda: data  # noqa: E731
        self._tell(SnapshotTaken(flow, samples, part + snapshot.first_sample, to_bytes, release))

    def _apply(self, command: Command) -> None:
        match command:
            case Feed(parts):
                self._feed(parts)
            case Open(flow, snapshot):
                self._open(flow, snapshot)
            case Finalize(flow, entry_id):
                if self._flows.get(flow.stream) is flow and not self._waits(command):
                    self._close_part(flow, entry_id)
            case ReplacePhrases(flow, phrases, sample):
                if self._flows.get(flow.stream) is flow and not self._waits(command):
                    self._replace_phrases(flow, phrases, sample)
            case Finish(flow):
                if self._flows.get(flow.stream) is flow and not self._waits(command):
                    self._checkpoints.drop(flow.stream)
                    self._finish(flow)
            case Fail(flow, error):
                if self._flows.get(flow.stream) is flow:
                    self._fail(flow, error)
            case Drop(flow):
                if self._flows.get(flow.stream) is flow:
                    self._close(flow.stream)
                    self._tell(Dropped(flow))
            case MakeRoom():
                self._checkpoints.hurry()
                self._take_snapshots()
            case HandOver():
                for flow in list(self._flows.values()):
                    self._snapshot(flow, release=True)
                    self._close(flow.stream)
                    self._busy_since = time.monotonic()  # no single turn: each waits for the device
                self._tell(HandedOver())

    def _open(self, flow: StreamFlow, snapshot: bytes | None) -> None:
        try:
            # A stream may come back to a worker that has not noticed yet that it lost the stream.
            old = self._flows.get(flow.stream)
            if old is not None:
                self._close(flow.stream)
                self._tell(Dropped(old))
            try:
                self._engine.open(flow.stream, flow.owned.record.options, snapshot)
            except SnapshotMismatch as error:
                self._open_cold(flow, error, phrases_in(snapshot or b""))
        except UnsupportedOption as error:
            self._tell(Failed(flow, ClientFault(ErrorCode.BAD_OPTION, str(error))))
            return
        except (EngineError, ValueError):
            logger.exception("the engine refused a stream", extra={"stream_id": flow.stream})
            self._tell(Failed(flow, worker_failed()))
            return
        self._flows[flow.stream] = flow
        self._segments.open(flow)
        self._checkpoints.opened(flow.stream, flow.owned.record.checkpoint.samples_decoded)
        self._tell(Opened(flow))

    def _open_cold(
        self, flow: StreamFlow, mismatch: SnapshotMismatch, phrases: tuple[Phrase, ...] | None
    ) -> None:
        """Open a stream anew at the checkpoint: of its snapshot only the phrases can be used here.

        Raises the errors of `Engine.open`, and the mismatch where the text before it is not kept.
        """
        base = base_at(flow.owned.record.checkpoint)
        if len(flow.text) < base.text_chars:
            raise mismatch
        logger.warning(
            "a stream is replayed from the log: %s",
            mismatch,
            extra={"stream_id": flow.stream, "epoch": flow.owned.epoch},
        )
        options = flow.owned.record.options
        self._engine.open(flow.stream, options if phrases is None else replace(options, phrases=phrases))
        flow.base, flow.cold = base, True
        if flow.owned.record.checkpoint.reach_samples:
            self._skipped[flow.stream] = flow.owned.record.checkpoint.reach_samples

    def _close_part(self, flow: StreamFlow, entry_id: bytes) -> None:
        self._checkpoints.marked(flow.stream)
        try:
            self._segments.close_part(flow.stream, entry_id, self._engine.phrases(flow.stream))
            self._engine.finish(flow.stream)
        except (EngineError, ValueError):
            self._refused(flow)

    def _begin_next_part(self, end: StreamOutput) -> Waiting:
        """Begin the part after one that a `finalize` has ended; return the commands that waited for that."""
        flow = self._flows[end.stream]
        phrases, waiting = self._segments.next_part(end)
        try:
            self._engine.open(flow.stream, replace(flow.owned.record.options, phrases=phrases))
        except (EngineError, ValueError):
            self._refused(flow)
        return waiting

    def _go_on(self, flow: StreamFlow, commands: Waiting) -> None:
        """Carry out the commands that waited for the next part of a stream."""
        for item in commands:
            if isinstance(item, (Finalize, ReplacePhrases, Finish)):
                self._apply(item)
            else:
                self._feed([(flow, item)])

    def _replace_phrases(self, flow: StreamFlow, phrases: tuple[Phrase, ...], sample: int) -> None:
        self._checkpoints.marked(flow.stream, phrases)
        begin = self._segments.first_sample(flow.stream)
        try:
            self._engine.replace_phrases(flow.stream, phrases, max(0, sample - begin))
        except (EngineError, ValueError):
            self._refused(flow)

    def _waits(self, command: Finalize | ReplacePhrases | Finish) -> bool:
        """Return whether the engine has to end a part of the stream first; the command is kept until then."""
        waiting = self._segments.waiting(command.flow.stream)
        if waiting is None:
            return False
        waiting.append(command)
        return True

    def _feed(self, parts: Sequence[tuple[StreamFlow, Samples]]) -> None:
        flows, feed = self._flows, self._engine.feed
        for flow, samples in parts:
            stream = flow.stream
            if flows.get(stream) is flow:
                waiting = self._segments.waiting(stream)
                if waiting is not None:
                    waiting.append(samples)
                    continue
                if self._skipped:
                    samples = self._unskipped(stream, samples)
                try:
                    feed(stream, samples)
                except (EngineError, ValueError):
                    self._refused(flow)

    def _unskipped(self, stream: StreamId, samples: Samples) -> Samples:
        """Return the samples after the checkpoint of a stream without a snapshot; acknowledge the others."""
        left = self._skipped.get(stream)
        if left is None:
            return samples
        skipped = min(left, len(samples))
        if skipped == left:
            del self._skipped[stream]
        else:
            self._skipped[stream] = left - skipped
        self._tell(Decoded([acknowledgement(stream, self._flows[stream].base.samples - left + skipped)]))
        return samples[skipped:]

    def _finish(self, flow: StreamFlow) -> None:
        try:
            self._engine.finish(flow.stream)
        except (EngineError, ValueError):
            self._refused(flow)

    def _refused(self, flow: StreamFlow) -> None:
        """End a stream, and no other, for the exception that the engine has just raised."""
        logger.exception("a stream failed in the engine", extra={"stream_id": flow.stream})
        self._fail(flow, worker_failed())

    def _fail(self, flow: StreamFlow, error: StreamError) -> None:
        self._close(flow.stream)
        self._tell(Failed(flow, error))

    def _close(self, stream: StreamId) -> None:
        self._drop(stream)
        try:
            self._engine.close(stream)
        except UnknownStream:
            logger.debug("closed already", extra={"stream_id": stream})

    def _drop(self, stream: StreamId) -> None:
        self._flows.pop(stream, None)
        self._segments.drop(stream)
        self._skipped.pop(stream, None)
        self._checkpoints.drop(stream)
