"""Streams as this worker's own: opened from their assignments, and let go when they are lost."""

from __future__ import annotations

import logging
import threading
from collections.abc import Sequence

from common.entries import AssignmentEntry
from common.errors import ClientFault, EntryError, ErrorCode, StreamLost
from common.redis.clients import REDIS_ERROR, RedisServers, SyncRedis
from common.streams.claims import Claims, OwnedStream, Suspect
from gpu_worker.engine_events import Drop, EventSink, Fail, Failed
from gpu_worker.engine_thread import EngineThread
from gpu_worker.flow import StreamFlow, StreamTable
from gpu_worker.intake import Intake
from gpu_worker.quarantine import Quarantine

logger = logging.getLogger(__name__)


class Owner:
    """Makes assignments into streams of this worker, and lets lost ones go. For any thread."""

    def __init__(
        self,
        *,
        servers: RedisServers,
        redis: SyncRedis,
        claims: Claims,
        table: StreamTable,
        intakes: Sequence[Intake],
        engine: EngineThread,
        sink: EventSink,
        quarantine: Quarantine,
    ) -> None:
        self._servers = servers
        self._quarantine = quarantine
        self._claims = claims
        self._table = table
        self._intakes = intakes
        self._engine = engine
        self._sink = sink
        self._redis = redis
        self._losing = threading.Lock()

    def take(self, entries: Sequence[AssignmentEntry], reserved: int, together: int = 0) -> None:
        """Open these streams; their slots have been reserved, and more where `reserved` is larger.

        together: suspects that this process runs with each of them (`Claims.open`).
        """
        self._table.unreserve(reserved - len(entries))
        left = len(entries)
        try:
            for entry in entries:
                left -= 1
                self._take_one(entry, together)
        finally:
            # The rest stays pending for this worker; the sweep finds it.
            self._table.unreserve(left)

    def _take_one(self, entry: AssignmentEntry, together: int) -> None:
        try:
            owned = self._claims.open(entry, together)
            if isinstance(owned, Suspect):
                self._quarantine.take(entry)
                owned = None
            snapshot = self._claims.snapshot(owned) if owned is not None else None
        except EntryError as error:
            logger.error("unreadable stream: %s", error, extra={"stream_id": entry.stream})
            self._table.unreserve(1)
            return
        except BaseException:
            self._table.unreserve(1)
            raise
        if owned is None:
            self._table.unreserve(1)
            return
        flow = StreamFlow(owned)
        extra = {"stream_id": owned.stream, "epoch": owned.epoch}
        if owned.poison:
            logger.error("poison: the stream is ended, see its dead letter", extra=extra)
            self._table.add(flow)
            self._sink.put(Failed(flow, _poison()))
            return
        if owned.record.checkpoint.samples_decoded and snapshot is None:
            logger.error("the snapshot of a stream is gone", extra=extra)
            self._table.add(flow)
            self._sink.put(Failed(flow, StreamLost()))
            return
        logger.info("stream claimed" if owned.epoch == 1 else "stream taken over", extra=extra)
        self.intake_of(owned).take_in(flow, snapshot)

    def intake_of(self, owned: OwnedStream) -> Intake:
        """The intake that reads a stream."""
        return self._intakes[self._servers.server_of_shard(owned.keys.shard)]

    def lost(self, flow: StreamFlow) -> None:
        """Find out about a stream whose audio group or results are not ours any more, and act on it.

        Several threads come upon the same loss; the first one acts.
        """
        with self._losing:
            if flow.lost:
                return
            flow.lost = True
        extra = {"stream_id": flow.stream, "epoch": flow.owned.epoch}
        try:
            owned = self._claims.still_owned([flow.owned])[0]
            if not owned:
                # Where the whole stream has left Redis, this takes its assignment away too.
                self._redis.stream(flow.stream).execute_command(*self._claims.finish_command(flow.owned))
        except (REDIS_ERROR, OSError) as error:
            logger.warning("a lost stream is looked at again: %s", error, extra=extra)
            flow.lost = False
            return
        if owned:
            # The record is there and the audio is not: nobody can go on with this stream.
            self._engine.put(Fail(flow, StreamLost()))
        else:
            logger.warning("stream lost to another worker, or gone", extra=extra)
            self.drop(flow)

    def drop(self, flow: StreamFlow) -> None:
        """Forget a stream."""
        self._engine.put(Drop(flow))


def _poison() -> ClientFault:
    return ClientFault(
        ErrorCode.POISON,
        "The audio of this stream has ended the processes that decoded it; it is not retried.",
    )
