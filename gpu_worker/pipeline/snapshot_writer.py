"""Writes snapshots to Redis, with a thread and connections of its own.

A snapshot has megabytes. On the outlet's connection the results of all streams would wait behind it, in the
worker and in Redis. So it goes piece by piece over another connection, and Redis serves others between two
pieces.
"""

from __future__ import annotations

import logging
import queue
import threading
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Final

from common.monitoring.metrics import WorkerMetrics
from common.redis.clients import REDIS_ERROR, SyncRedis, is_passing
from common.redis.connect import pack
from common.redis.outages import OUTAGES
from common.streams.assignments import Checkpoint
from common.streams.claims import Claims
from gpu_worker.part import Part
from gpu_worker.pipeline.flow import StreamFlow, StreamTable

logger = logging.getLogger(__name__)

# Most memory of snapshots that are taken and not written; beyond it no further ones are taken.
# Their number at first and at least; more where they are small.
MAX_UNDER_WAY: Final = 8
_MAX_SMALL_ONES: Final = 256
_MAX_BYTES: Final = 64 * 1024 * 1024
_COMMANDS_OF_ONE_PIECE: Final = 2
_RETRY_S: Final = 0.5


@dataclass(frozen=True, slots=True)
class Snapshot:
    """The engine's state of a stream, and its checkpoint.

    to_bytes: serializes it; called in this module's thread.
    """

    flow: StreamFlow
    checkpoint: Checkpoint
    to_bytes: Callable[[], bytes]


class SnapshotWriter(Part):
    """Stores the checkpoints of streams on one server, one after the other.

    Those of streams that have ended or moved are dropped. server: which one.
    """

    def __init__(
        self, redis: SyncRedis, claims: Claims, table: StreamTable, metrics: WorkerMetrics, server: int = 0
    ) -> None:
        super().__init__(f"snapshots-{server}")
        self._metrics = metrics
        self._claims = claims
        self._table = table
        self._connection = redis.pipelined(server)
        self._queue: queue.SimpleQueue[Snapshot | None] = queue.SimpleQueue()
        self._lock = threading.Lock()
        self._under_way, self._most = 0, MAX_UNDER_WAY

    def has_room(self) -> bool:
        """Return whether there is room for another snapshot."""
        return self._under_way < self._most

    def expect(self) -> None:
        """Count a snapshot that was taken: `put` or `drop` follows."""
        with self._lock:
            self._under_way += 1

    def put(self, snapshot: Snapshot) -> None:
        """Queue a snapshot whose stream's results are written up to its checkpoint; never waits."""
        self._queue.put(snapshot)

    def drop(self) -> None:
        """Subtract a counted snapshot: it is written, or will not come."""
        with self._lock:
            self._under_way -= 1

    def request_stop(self) -> None:
        """Begin to end; queued snapshots are dropped, since the streams have ended or are handed over."""
        super().request_stop()
        self._queue.put(None)

    def _run(self) -> None:
        while (snapshot := self._queue.get()) is not None:
            try:
                self._store(snapshot)
            except Exception:
                self._metrics.snapshots["failed"] += 1
                # The stream keeps its last checkpoint until its next one.
                logger.exception("no checkpoint", extra={"stream_id": snapshot.flow.stream})
            self.drop()

    def _store(self, snapshot: Snapshot) -> None:
        data = b""
        while not self._stop.is_set() and self._is_wanted(snapshot):
            data = data or self._serialized(snapshot)
            try:
                stored = self._write(snapshot, data)
            except (REDIS_ERROR, OSError) as error:
                if not is_passing(error):
                    raise
                OUTAGES.log_retry(logger, "a checkpoint waits for Redis: %s", error)
                self._stop.wait(_RETRY_S)
            else:
                if stored:
                    self._metrics.snapshots["written"] += 1
                    self._metrics.snapshot_bytes += len(data)
                elif self._is_wanted(snapshot):
                    self._metrics.snapshots["failed"] += 1
                    # Its audio is kept until a later one is stored.
                    logger.warning("a checkpoint was refused", extra={"stream_id": snapshot.flow.stream})
                return
        self._metrics.snapshots["skipped"] += 1

    def _serialized(self, snapshot: Snapshot) -> bytes:
        data = snapshot.to_bytes()
        self._most = max(MAX_UNDER_WAY, min(_MAX_SMALL_ONES, _MAX_BYTES // len(data)))
        return data

    def _is_wanted(self, snapshot: Snapshot) -> bool:
        flow = snapshot.flow
        return not flow.lost and self._table.get(flow.stream) is flow

    def _write(self, snapshot: Snapshot, data: bytes) -> bool:
        reply: Any = None
        owned = snapshot.flow.owned
        commands = [
            pack(*command) for command in self._claims.checkpoint_commands(owned, snapshot.checkpoint, data)
        ]
        # Each piece waits for the one before: Redis would execute all commands that it has read of a
        # connection in one go. That is little where the snapshot is one piece.
        at_once = len(commands) if len(commands) == _COMMANDS_OF_ONE_PIECE else 1
        for at in range(0, len(commands), at_once):
            for reply in self._connection.call(commands[at : at + at_once], repeat=False):
                if isinstance(reply, Exception):
                    raise reply
        return bool(reply)
