"""The outlet: one thread that writes results to Redis, all waiting ones in one pipeline.

The output of a step for a stream is written in the order result, acknowledgement of the audio, publication,
so that a worker may die between any two of them. A replay decodes unacknowledged audio again, and produces
the same results with the same numbers; results that Redis has already are not sent again.
"""

from __future__ import annotations

import contextlib
import logging
import queue
import threading
import time
from collections import deque
from collections.abc import Callable, Iterable, Sequence
from typing import Any, Final

from common.entries import LineKind, StreamId, WorkerId, encode_error, encode_record
from common.errors import ClientFault, ErrorCode, StreamError
from common.monitoring.metrics import WorkerMetrics
from common.redis.clients import REDIS_ERROR, SyncRedis, is_passing
from common.redis.keys import READY_TTL_MS, Keys, StreamKeys
from common.redis.outages import OUTAGES
from common.redis.scripts.ownership import keep_dead_letter, note_cold
from common.streams.assignments import Base, Checkpoint
from common.streams.claims import Claims, OwnedStream
from common.streams.kept_text import ResultLog
from common.streams.result_writer import ResultBatch, ResultWriter
from gpu_worker.engine.interface import StreamOutput
from gpu_worker.part import Part
from gpu_worker.pipeline.audio import client_samples, first_needed
from gpu_worker.pipeline.engine_events import (
    Decoded,
    Dropped,
    Event,
    Failed,
    HandedOver,
    Opened,
    SnapshotTaken,
    failure_of,
)
from gpu_worker.pipeline.flow import StreamFlow, StreamTable, Undecoded
from gpu_worker.pipeline.snapshot_writer import Snapshot, SnapshotWriter

logger = logging.getLogger(__name__)

# Events that may wait for Redis before the engine thread has to wait: several steps, so that one slow reply
# does not hold the device up, and few enough to bound the work that a worker may have done in vain.
MAX_QUEUED_EVENTS: Final = 256
# Snapshots of streams that are handed over go with their results; this many bytes of them go in one write.
_MAX_RELEASED_BYTES: Final = 16 * 1024 * 1024
_WAIT_S: Final = 1.0
_FIRST_RETRY_S: Final = 0.05
_MAX_RETRY_S: Final = 1.0


class _Writing:
    """The outlet's own state of one stream.

    epoch, last_seq: those of its ownership, as in `OwnedStream`. seq: number of the last result, sent or not.
    acked: client samples of the last acknowledgement that was sent to the client. ack_samples: fewest decoded
    samples without a result that are acknowledged. kept: decoded entries that a replay may still need, one a
    second. replay_entry: last entry that no replay needs. base: where the engine's part of the stream begins.
    log: writes its results and its text. utterances: finals of utterances so far.
    told_to: client samples for which an earlier owner sent results that may differ from this owner's; 0 where
    they are the same.
    """

    __slots__ = (
        "ack_samples",
        "acked",
        "base",
        "epoch",
        "flow",
        "kept",
        "last_seq",
        "log",
        "rate",
        "replay_entry",
        "seq",
        "told_to",
        "utterances",
    )

    def __init__(self, flow: StreamFlow) -> None:
        checkpoint = flow.owned.record.checkpoint
        self.flow: Final = flow
        self.base = flow.base
        self.rate: Final = flow.owned.record.sample_rate
        # A client of utterances waits for silence: it hears of each second that ends, however new its last
        # result is. Deepgram's `UtteranceEnd` depends on it.
        self.ack_samples: Final = 1 if flow.owned.record.options.auto_finalize else self.rate
        self.epoch: Final = flow.owned.epoch
        self.last_seq: Final = flow.owned.last_seq
        owned, record = flow.owned, flow.owned.record
        # After a start without the snapshot, the results of a replay are not those that were sent: they
        # continue after those, and repeat the text in which the two may differ.
        cold = flow.cold or record.cold
        self.seq = owned.last_seq if cold else checkpoint.seq
        self.told_to = owned.last_acked if cold else 0
        self.acked = client_samples(self.rate, checkpoint.samples_decoded, self.base)
        self.utterances = checkpoint.utterances
        before = flow.text[: checkpoint.text_chars] if cold else ""
        self.log = ResultLog(
            chars=checkpoint.text_chars,
            kept_seq=record.text_seq,
            kept_chars=len(before) if cold else record.text_chars,
            kept_bytes=len(before.encode()) if cold else owned.text_bytes,
        )
        self.kept: Final[deque[Undecoded]] = deque()
        self.replay_entry = checkpoint.entry_id


class Outlet(Part):
    """Writes the events of the engine thread about the streams of one server to Redis.

    server: which one.
    snapshots: writes the snapshots of streams that go on here.
    on_fenced: called with streams that newer owners have, or that left Redis.
    on_refused: called with streams for which Redis refuses a key.
    on_failure: called in this thread, last, when it cannot go on.
    dead_letters: whether audio that ended its workers is kept for inspection.
    redis_loss_ms: the last writes that Redis may lose when it dies, in milliseconds.
    """

    def __init__(
        self,
        *,
        redis: SyncRedis,
        server: int = 0,
        keys: Keys,
        worker: WorkerId,
        claims: Claims,
        table: StreamTable,
        snapshots: SnapshotWriter,
        metrics: WorkerMetrics,
        on_fenced: Callable[[Sequence[StreamFlow]], None],
        on_refused: Callable[[Sequence[StreamFlow]], None],
        on_failure: Callable[[BaseException], None],
        dead_letters: bool = True,
        redis_loss_ms: int = 0,
    ) -> None:
        super().__init__(f"outlet-{server}")
        self._writer = ResultWriter(redis, keys, keep_ms=redis_loss_ms)
        self._dead_letters = dead_letters
        self._keys = keys
        self._worker = worker
        self._claims = claims
        self._table = table
        self._snapshots = snapshots
        self._metrics = metrics
        self._on_fenced = on_fenced
        self._on_refused = on_refused
        self._on_failure = on_failure
        self._queue: queue.Queue[Event | None] = queue.Queue(MAX_QUEUED_EVENTS)
        self._writings: dict[StreamId, _Writing] = {}
        self._handed_over = threading.Event()
        self._finishing = False
        self._num_restored = 0

    def put(self, event: Event) -> None:
        """Take an event of the engine thread; wait while the queue is full."""
        if isinstance(event, SnapshotTaken) and not event.release:
            self._snapshots.expect()
        while not self._stop.is_set():
            try:
                self._queue.put(event, timeout=_WAIT_S)
            except queue.Full:
                continue
            return

    def takes_snapshot(self) -> bool:
        """Return whether a snapshot taken now would be written soon."""
        return self._snapshots.has_room()

    def wait_handed_over(self, timeout_s: float) -> bool:
        """Wait until the requested hand-over is in Redis; return False after the time-out."""
        return self._handed_over.wait(timeout_s)

    def finish(self, timeout_s: float = 0.0) -> None:
        """Begin to end: what is queued is still written."""
        if not self._finishing:
            with contextlib.suppress(queue.Full):
                self._queue.put(None, timeout=timeout_s)
                self._finishing = True

    def stop(self, timeout_s: float) -> bool:
        """End the thread after the queued events; they stay unwritten if there is no time for them."""
        self.finish(timeout_s)
        self._thread.join(timeout_s)
        self._stop.set()
        return not self._thread.is_alive()

    # The thread

    def _run(self) -> None:
        stopping = False
        while not stopping and not self._stop.is_set():
            events: list[Event] = []
            released_bytes = 0
            try:
                event = self._queue.get(timeout=_WAIT_S)
                while event is not None:
                    events.append(event)
                    if isinstance(event, SnapshotTaken) and event.release:
                        released_bytes += len(event.to_bytes())
                    if len(events) == MAX_QUEUED_EVENTS or released_bytes > _MAX_RELEASED_BYTES:
                        break
                    event = self._queue.get_nowait()
                stopping = event is None
            except queue.Empty:
                pass
            try:
                self._process(events)
            except Exception as error:
                # A worker that decodes and writes nothing would be worse than a worker that ends.
                logger.exception("results cannot be written")
                self._stop.set()
                self._on_failure(error)

    def _process(self, events: Iterable[Event]) -> None:
        batch = _Batch(self._writer.batch())
        handed_over = False
        for event in events:
            match event:
                case Decoded(outputs):
                    for output in outputs:
                        writing = self._writings.get(output.stream)
                        if writing is not None:
                            self._output(batch, writing, output)
                case Opened(flow):
                    self._opened(batch, flow)
                case SnapshotTaken():
                    self._snapshot(batch, event)
                case Failed(flow, error):
                    self._failed(batch, flow, error)
                case Dropped(flow):
                    self._drop(flow)
                case HandedOver():
                    handed_over = True
        if not self._commit(batch):
            return
        # Only now: a checkpoint states that the results before it are written.
        for checkpoint in batch.checkpoints:
            self._snapshots.put(checkpoint)
        if handed_over:
            self._handed_over.set()

    def _opened(self, batch: _Batch, flow: StreamFlow) -> None:
        self._writings[flow.stream] = _Writing(flow)
        owned = flow.owned
        notice = self._worker.encode()
        batch.results.say(owned, flow.ingress, LineKind.OWNER, owned.last_seq, owned.last_acked, notice)
        if flow.cold:
            batch.results.then(owned, note_cold(owned.keys, epoch=owned.epoch))
        # Audio that came before the ingress knew this worker was announced to no worker.
        batch.results.then(owned, *_ready_commands(self._keys, owned.keys, self._worker))

    def _output(self, batch: _Batch, writing: _Writing, output: StreamOutput) -> None:
        flow, results = writing.flow, batch.results
        if output.failed is not None:
            failure, place = failure_of(output.failed), {"stream_id": flow.stream}
            if isinstance(failure, ClientFault):  # its sentence may quote the client
                logger.info("a stream failed: %s", failure.code, extra=place)
            else:
                logger.error("the engine gave a stream up: %s", output.failed, extra=place)
            self._failed(batch, flow, failure)
            return
        flow.decoded_samples = output.samples_decoded
        if output.utterances:  # also where the result is not sent: the engine's next parts count from here
            writing.utterances = output.utterances[-1].number
        done, decoded = self._decoded(writing, output)
        if done <= writing.told_to and not (output.is_final or output.from_finalize):
            pass  # its client has received it
        elif (
            output.from_finalize
            or output.changed
            or output.token_ids
            or output.is_turn_event
            or output.is_final
        ):
            writing.seq = seq = writing.seq + 1
            writing.acked = done
            text_from = writing.log.text_from(output.text)
            if seq == writing.last_seq + 1:
                # Another owner sent the earlier results. It may have had a verdict of smart-turn that this
                # worker had not, and so other results. The text at the checkpoint is the same for both.
                text_from = min(text_from, flow.owned.record.checkpoint.text_chars)
            if output.from_finalize:
                end = output.samples_decoded
                writing.base = Base(end, len(output.text), writing.utterances, decoded[-1], end, done)
            if seq > writing.last_seq:
                self._result(results, writing, output, text_from)
        elif done - writing.acked >= writing.ack_samples:
            writing.acked = done
            results.say(flow.owned, flow.ingress, LineKind.ACK, writing.seq, done)
        if decoded:
            results.acknowledge(flow.owned, decoded)
        if output.is_final:
            batch.ends(flow, self._claims.finish_command(flow.owned))
        elif flow.held and flow.backlog_samples < self._table.max_backlog_samples // 2:
            flow.held = False
            results.then(flow.owned, *_ready_commands(self._keys, flow.owned.keys, self._worker))

    @staticmethod
    def _result(results: ResultBatch, writing: _Writing, output: StreamOutput, text_from: int) -> None:
        """Write a result, and store the kept text now and then."""
        owned, log = writing.flow.owned, writing.log
        kind = LineKind.PARTIAL
        if output.is_final:
            kind = LineKind.FINAL
        elif output.from_finalize:
            kind = LineKind.FINALIZED
        elif output.is_turn_event:
            kind = LineKind.TURN
        body = encode_record(output, text_from)
        results.say(
            owned,
            writing.flow.ingress,
            kind,
            writing.seq,
            writing.acked,
            body,
            max_length=log.added(len(body)),
        )
        if log.is_due:
            _keep_text(results, writing)

    @staticmethod
    def _decoded(writing: _Writing, output: StreamOutput) -> tuple[int, list[bytes]]:
        """Remove the entries that are decoded by now; return the decoded client samples, and their ids."""
        flow, kept = writing.flow, writing.kept
        undecoded = flow.undecoded
        done = client_samples(writing.rate, output.samples_decoded, writing.base)
        ids: list[bytes] = []
        rate = writing.rate
        ends = output.is_final or output.from_finalize
        while undecoded and (ends or (undecoded[0].end_sample <= done and not undecoded[0].finalizes)):
            entry = undecoded.popleft()
            flow.decoded_entry = entry.entry_id
            ids.append(entry.entry_id)
            if len(kept) > 1 and entry.end_sample - kept[-2].end_sample < rate:
                kept.pop()
            kept.append(entry)
            if ends:
                done = entry.end_sample
            if output.from_finalize and entry.finalizes:
                break
        return max(done, writing.acked), ids

    def _snapshot(self, batch: _Batch, snapshot: SnapshotTaken) -> None:
        flow = snapshot.flow
        writing = self._writings.get(flow.stream)
        if writing is None or writing.flow is not flow:
            if not snapshot.release:
                self._snapshots.drop()
            return
        if writing.seq == writing.last_seq and writing.told_to:
            # The engine repeats results, and has none of its own yet: the checkpoint before is as good.
            if snapshot.release:
                batch.ends(flow)
            else:
                self._snapshots.drop()
            return
        needed = first_needed(writing.rate, snapshot.first_sample, writing.base)
        while writing.kept and writing.kept[0].end_sample <= needed:
            writing.replay_entry = writing.kept.popleft().entry_id
        # A checkpoint goes no further than the kept text: a cold start begins with that text.
        _keep_text(batch.results, writing)
        checkpoint = Checkpoint(
            entry_id=writing.replay_entry,
            samples_decoded=snapshot.samples_decoded,
            seq=writing.seq,
            text_chars=writing.log.chars,
            utterances=writing.utterances,
            base=writing.base,
            reach_samples=snapshot.samples_decoded - snapshot.first_sample,
        )
        if snapshot.release:
            batch.ends(flow, *self._claims.checkpoint_commands(flow.owned, checkpoint, snapshot.to_bytes()))
        else:
            batch.checkpoints.append(Snapshot(flow, checkpoint, snapshot.to_bytes))

    def _failed(self, batch: _Batch, flow: StreamFlow, error: StreamError) -> None:
        writing = self._writings.get(flow.stream)
        if writing is not None and writing.flow is not flow:
            writing = None  # of an earlier ownership: it has been opened and not dropped yet
        seq = 1 + max(flow.owned.last_seq, writing.seq if writing is not None else 0)
        acked = writing.acked if writing is not None else flow.owned.last_acked
        batch.results.say(flow.owned, flow.ingress, LineKind.ERROR, seq, acked, encode_error(error))
        if error.code is ErrorCode.POISON and self._dead_letters:
            batch.results.then(flow.owned, keep_dead_letter(flow.owned.keys, epoch=flow.owned.epoch))
        batch.ends(flow, self._claims.finish_command(flow.owned))

    def _commit(self, batch: _Batch) -> bool:
        """Write a batch, with retries, then free the slots of ended streams; False if it is given up."""
        pause = _FIRST_RETRY_S
        while True:
            started = time.monotonic()
            try:
                written = self._writer.write(batch.results)
                self._metrics.redis_write_seconds.observe(time.monotonic() - started)
                break
            except (REDIS_ERROR, OSError) as error:
                if not is_passing(error):
                    raise
                OUTAGES.log_retry(logger, "results wait for Redis: %s", error)
                if self._stop.wait(pause):
                    return False
                pause = min(2 * pause, _MAX_RETRY_S)
        before, self._num_restored = self._num_restored, self._writer.num_restored
        self._metrics.results_restored += self._num_restored - before
        for flow in batch.ended:
            self._drop(flow)
        for writing in self._those(written.text_gone):
            writing.log.keep_all_again()
        fenced = [writing.flow for writing in self._those(written.lost)]
        if fenced:
            self._metrics.fenced_writes += len(fenced)
            self._on_fenced(fenced)
        refused = [writing.flow for writing in self._those(written.refused)]
        if refused:
            self._on_refused(refused)
        return True

    def _those(self, streams: Iterable[OwnedStream]) -> list[_Writing]:
        """Return the outlet's own state of those streams that are still written for this ownership."""
        return [
            writing
            for owned in streams
            if (writing := self._writings.get(owned.stream)) is not None and writing.flow.owned is owned
        ]

    def _drop(self, flow: StreamFlow) -> None:
        writing = self._writings.get(flow.stream)
        if writing is not None and writing.flow is flow:
            del self._writings[flow.stream]
        self._table.remove(flow)


def _keep_text(results: ResultBatch, writing: _Writing) -> None:
    owned = writing.flow.owned
    command = writing.log.keep(owned.keys, owned.epoch, writing.seq)
    if command is not None:
        results.keep_text(owned, command)


def _ready_commands(keys: Keys, stream: StreamKeys, worker: WorkerId) -> tuple[tuple[Any, ...], ...]:
    """Return the commands with which a worker puts a stream into its own ready set."""
    ready = keys.ready(stream.shard, worker)
    # A set that was emptied has lost its expiry.
    return ("ZADD", ready, "NX", 0, stream.stream), ("PEXPIRE", ready, READY_TTL_MS)


class _Batch:
    """The commands of one pipeline, and the actions once they are written."""

    def __init__(self, results: ResultBatch) -> None:
        self.results: Final = results
        self.ended: set[StreamFlow] = set()
        self.checkpoints: list[Snapshot] = []

    def ends(self, flow: StreamFlow, *commands: tuple[Any, ...]) -> None:
        """End a stream, or release it to another worker, after everything that is written about it."""
        self.results.then(flow.owned, *commands)
        self.ended.add(flow)
