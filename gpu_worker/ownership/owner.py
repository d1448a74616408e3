"""Opens assigned streams as this worker's own, and drops streams that it has lost."""

from __future__ import annotations

import logging
import threading
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Final

from common.entries import AssignmentEntry
from common.errors import ClientFault, ErrorCode, StreamError, StreamLost
from common.monitoring.metrics import WorkerMetrics
from common.redis.clients import REDIS_ERROR, RedisServers, is_passing
from common.redis.outages import OUTAGES
from common.streams.claims import Claims, OwnedStream, Refused, Stored, Suspect
from gpu_worker.ownership.quarantine import Quarantine
from gpu_worker.pipeline.engine_events import Drop, EventSink, Fail, Failed, worker_failed
from gpu_worker.pipeline.engine_thread import EngineThread
from gpu_worker.pipeline.flow import StreamFlow, StreamTable
from gpu_worker.pipeline.intake import Intake

logger = logging.getLogger(__name__)

# Streams that are opened by one round trip. The first few show how large snapshots are, since those of a
# round trip are in memory at once; later round trips have as many streams as this many bytes allow, over all
# servers.
_FIRST_OPENED: Final = 8
_MOST_OPENED: Final = 64
_SNAPSHOT_BYTES: Final = 64 << 20


class Owner:
    """Turns assignments into streams of this worker, and drops lost streams. For any thread."""

    def __init__(
        self,
        *,
        servers: RedisServers,
        claims: Claims,
        table: StreamTable,
        intakes: Sequence[Intake],
        engine: EngineThread,
        sink: EventSink,
        quarantine: Quarantine,
        metrics: WorkerMetrics,
    ) -> None:
        self._servers = servers
        self._metrics = metrics
        self._quarantine = quarantine
        self._claims = claims
        self._table = table
        self._intakes = intakes
        self._engine = engine
        self._sink = sink
        self._losing = threading.Lock()
        self._counting = threading.Lock()

    def open(self, entries: Sequence[AssignmentEntry], reserved: int, together: int = 0) -> None:
        """Open these streams. reserved: the slots reserved for them; surplus slots are released.

        It opens a portion with each round trip: of many streams, the first go on while the others are
        fetched. Redis servers are queried in parallel. Streams that could not be opened stay pending for this
        worker, and the sweep offers them again.

        together: suspects that this process runs with each of them (`Claims.open`).
        Raises the Redis client's errors.
        """
        self._table.unreserve(reserved - len(entries))
        by_server: dict[int, list[AssignmentEntry]] = {}
        for entry in entries:
            server = self._servers.server_of_shard(entry.stream % self._servers.shards)
            by_server.setdefault(server, []).append(entry)
        groups = list(by_server.values())
        most_bytes = _SNAPSHOT_BYTES // max(1, len(groups))
        if len(groups) < 2:
            for group in groups:
                self._open(group, together, most_bytes)
            return
        with ThreadPoolExecutor(len(groups), "open") as pool:
            opened = [pool.submit(self._open, group, together, most_bytes) for group in groups]
        for future in opened:
            future.result()

    def _open(self, entries: Sequence[AssignmentEntry], together: int, most_bytes: int) -> None:
        """Open streams of one server. Raises the Redis client's errors."""
        left, at, count = len(entries), 0, _FIRST_OPENED
        try:
            while at < len(entries):
                openings = self._claims.open(entries[at : at + count], together)
                at += count
                owned = [opening for opening in openings if isinstance(opening, OwnedStream)]
                found = self._claims.snapshots(owned)
                for stream, stored in zip(owned, found, strict=True):
                    left -= 1
                    self._take_in(stream, stored)
                for opening in openings:
                    if isinstance(opening, Suspect):
                        with self._counting:
                            self._metrics.suspects += 1
                        if not self._quarantine.isolate(opening.entry):
                            left -= self._end_suspect(opening.entry)
                    elif isinstance(opening, Refused):
                        self._not_opened(opening)
                # Snapshots of streams of one model have about the same size.
                largest = max((len(one.snapshot or b"") for one in found if one is not None), default=0)
                count = max(1, min(_MOST_OPENED, most_bytes // (largest + 1)))
        finally:
            self._table.unreserve(left)

    @staticmethod
    def _not_opened(refused: Refused) -> None:
        """Log the fault of one stream. Raises a fault of Redis, which concerns all streams."""
        if is_passing(refused.error):
            raise refused.error
        extra = {"stream_id": refused.entry.stream}
        logger.error("a stream cannot be opened: %s", refused.error, extra=extra)

    def _take_in(self, owned: OwnedStream, stored: Stored | None) -> None:
        flow = StreamFlow(owned, stored.text if stored is not None else "")
        extra = {"stream_id": owned.stream, "epoch": owned.epoch}
        if owned.poison:
            logger.error("poison: the stream is ended, see its dead letter", extra=extra)
            with self._counting:
                self._metrics.poisoned += 1
            self._end(flow, _poison())
            return
        if stored is not None and (stored.snapshot is None or len(stored.text) < _chars_needed(owned)):
            logger.error("the snapshot of a stream, or its text, is gone", extra=extra)
            self._end(flow, StreamLost())
            return
        new = owned.epoch == 1
        logger.info("stream claimed" if new else "stream taken over", extra=extra)
        with self._counting:
            self._metrics.claims["new" if new else "takeover"] += 1
        self.intake_of(owned).take_in(flow, stored.snapshot if stored is not None else None)

    def _end_suspect(self, entry: AssignmentEntry) -> int:
        """End a suspect that no process can run; return how many slots that takes for a moment."""
        (opening,) = self._claims.open([entry], together=1)
        if not isinstance(opening, OwnedStream):
            return 0  # it has ended, or another worker has it by now
        logger.error("a suspect is ended, nothing can run it", extra={"stream_id": opening.stream})
        self._end(StreamFlow(opening), worker_failed())
        return 1

    def _end(self, flow: StreamFlow, error: StreamError) -> None:
        """End a stream that is not opened."""
        # A stream may come back to a worker that has not noticed yet that it lost the stream.
        old = self._table.get(flow.stream)
        self._table.add(flow)
        if old is not None:
            self._engine.put(Drop(old))
        self._sink.put(Failed(flow, error))

    def intake_of(self, owned: OwnedStream) -> Intake:
        """Return the intake that reads a stream."""
        return self._intakes[self._servers.server_of_shard(owned.keys.shard)]

    def look_at_lost(self, flows: Sequence[StreamFlow], *, fenced: bool = False) -> None:
        """Check streams whose audio group or results may not be this worker's any more, and drop lost ones.

        Several threads may notice the same loss; the first one acts.

        fenced: whether their results belong to a later owner. If the record names this worker all the same,
        Redis has lost that ownership, and the later owner wrote its results again: the stream is opened anew,
        with an epoch beyond both.
        """
        with self._losing:
            news = [flow for flow in flows if not flow.lost]
            for flow in news:
                flow.lost = True
        if not news:
            return
        try:
            ours = self._claims.still_owned([flow.owned for flow in news])
            # If a whole stream has left Redis, this removes its assignment too.
            self._claims.finish([flow.owned for flow, is_ours in zip(news, ours, strict=True) if not is_ours])
            if fenced:  # no worker has died of them
                again = [flow.owned for flow, is_ours in zip(news, ours, strict=True) if is_ours]
                self._claims.let_go(again, cleared=False)
        except (REDIS_ERROR, OSError) as error:
            OUTAGES.log_retry(logger, "%d lost streams are looked at again: %s", len(news), error)
            for flow in news:
                flow.lost = False
            return
        for flow, is_ours in zip(news, ours, strict=True):
            extra = {"stream_id": flow.stream, "epoch": flow.owned.epoch}
            if is_ours and fenced:
                logger.warning("stream opened anew: its last owner was forgotten", extra=extra)
                self._engine.put(Drop(flow))  # the sweep opens streams that are pending and not here
            elif is_ours:
                # The record exists and the audio does not: no worker can go on with this stream.
                self._engine.put(Fail(flow, StreamLost()))
            else:
                # No warning: a stream is gone if its client left as soon as it had begun.
                logger.info("stream let go: another worker has it, or it has ended", extra=extra)
                self._engine.put(Drop(flow))


def _chars_needed(owned: OwnedStream) -> int:
    """Return the code points of the kept text that are needed to go on from the checkpoint."""
    checkpoint = owned.record.checkpoint
    return checkpoint.text_chars if owned.record.cold else checkpoint.base.text_chars


def _poison() -> ClientFault:
    return ClientFault(
        ErrorCode.POISON,
        "The audio of this stream has ended the processes that decoded it; it is not retried.",
    )
