"""The work of a quarantined worker: it runs assigned suspects, a group at a time, and returns them.

A group is done when each of its streams is past the audio over which its owners died, or has been decoded to
the end of its audio without a failure. Its streams then go, with a snapshot, to the workers that have room.
No process is started or loaded between two groups.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Sequence
from typing import Final

from common.entries import AssignmentEntry, WorkerId
from common.presence.leases import WorkerLease
from common.process.stop_times import HAND_OVER_S
from common.redis.clients import REDIS_ERROR
from common.redis.keys import Keys
from common.redis.outages import OUTAGES
from common.redis.pipelined import SyncClient
from common.streams.claims import Claims, OwnedStream
from gpu_worker.ownership.owner import Owner
from gpu_worker.part import Part
from gpu_worker.pipeline.engine_events import HandOver
from gpu_worker.pipeline.engine_thread import EngineThread
from gpu_worker.pipeline.flow import StreamFlow, StreamTable

logger = logging.getLogger(__name__)

# Suspects that are read before a group is made of them.
_MAX_LISTED: Final = 1024
_LOOK_EVERY_S: Final = 0.02
# An engine that is idle for this long has all the audio that was read just before.
_SETTLED_S: Final = 0.1
# A group that is not done by then makes room for others, and continues later.
_TURN_S: Final = 10.0
# A process without suspects for this long ends, and frees its memory.
_IDLE_S: Final = 30.0
_RETRY_S: Final = 0.2
# A returned stream is assigned to a name without a process for this long at most.
_GIVING_MS: Final = 5_000


class SuspectRunner(Part):
    """Runs the streams that are pending for this worker, and no other. A thread.

    done: called when there have been no suspects for a while.
    """

    def __init__(
        self,
        *,
        client: SyncClient,
        keys: Keys,
        worker: WorkerId,
        claims: Claims,
        table: StreamTable,
        owner: Owner,
        engine: EngineThread,
        done: Callable[[], None],
    ) -> None:
        super().__init__("suspects")
        self._worker = worker
        self._heir = WorkerId(f"{worker}-cleared")
        self._heir_lease = WorkerLease(client, keys, self._heir, _GIVING_MS)
        self._claims = claims
        self._table = table
        self._owner = owner
        self._engine = engine
        self._done = done
        self._wake = threading.Event()

    def request_stop(self) -> None:
        """Take no more suspects from now on."""
        super().request_stop()
        self._wake.set()

    def wake(self) -> None:
        """Look for suspects at once."""
        self._wake.set()

    def _run(self) -> None:
        idle_since = time.monotonic()
        while not self._stop.is_set():
            self._wake.clear()
            try:
                if len(self._table):
                    # An error of Redis intervened: opening the group again would count as deaths.
                    self._finish_group()
                group, within = self._next_group()
                if group:
                    self._run_group(group, within)
                    idle_since = time.monotonic()
            except (REDIS_ERROR, OSError) as error:
                OUTAGES.log_retry(logger, "suspects wait for Redis: %s", error)
                self._stop.wait(_RETRY_S)
                continue
            if not group:
                if time.monotonic() - idle_since > _IDLE_S:
                    logger.info("no suspects any more")
                    self._done()
                    return
                self._wake.wait(1.0)

    def _next_group(self) -> tuple[list[AssignmentEntry], int]:
        """Return the suspects to run together, and how many they may be.

        Suspects that were in the largest groups, or in none, come first: most of them are innocent.
        """
        entries = self._claims.pending_of(self._worker, _MAX_LISTED)
        if not entries:
            return [], 0
        waiting = list(zip(self._claims.within(entries), entries, strict=True))
        within = max(most for most, _ in waiting)
        room = min(within, self._table.capacity)
        return [entry for most, entry in waiting if most == within][:room], within

    def _run_group(self, entries: Sequence[AssignmentEntry], within: int) -> None:
        if self._table.reserve(len(entries)) < len(entries):
            raise RuntimeError("a quarantined worker has one group at a time")
        self._owner.open(entries, len(entries), together=len(entries))
        logger.info("%d suspects run, of at most %d together", len(self._table), within)
        self._finish_group()

    def _finish_group(self) -> None:
        """Wait until the running streams are cleared, or have had their time, and return them."""
        ends = time.monotonic() + _TURN_S
        idle_since: float | None = None
        while not self._stop.is_set() and len(self._table):
            now = time.monotonic()
            # In this order: the progress of all audio in the engine is known by now.
            idle = self._engine.idle
            idle_since = (idle_since or now) if idle else None
            settled = idle_since is not None and now - idle_since >= _SETTLED_S
            cleared = [flow for flow in self._table.flows() if is_cleared(flow, settled=settled)]
            if len(cleared) == len(self._table) or now >= ends:
                self._give_back(self._table.flows(), cleared)
                return
            self._stop.wait(_LOOK_EVERY_S)

    def _give_back(self, flows: Sequence[StreamFlow], cleared: Sequence[StreamFlow]) -> None:
        """Hand the group over; streams that are not cleared stay pending here, and are run again."""
        self._claims.let_go([flow.owned for flow in flows if flow in cleared], cleared=True)
        self._claims.let_go([flow.owned for flow in flows if flow not in cleared], cleared=False)
        self._engine.put(HandOver())
        if not self._table.wait_until_empty(HAND_OVER_S):
            raise TimeoutError("suspects could not be handed over in time")
        if not cleared:
            return
        # Assigned to a name whose lease then lapses: every worker with room takes a part of them.
        self._heir_lease.renew(begins=True)
        self._claims.give([_assignment(flow.owned) for flow in cleared], self._heir)
        self._heir_lease.release()
        logger.info("%d suspects cleared", len(cleared))


def is_cleared(flow: StreamFlow, *, settled: bool) -> bool:
    """Return whether a suspect is past the audio over which its owners died.

    settled: whether the engine has decoded all fed audio as far as possible.
    """
    died_to = flow.owned.record.died_to
    if died_to is None:
        return True
    decoded = flow.decoded_entry or flow.owned.record.checkpoint.entry_id
    if decoded is not None and _order(decoded) >= _order(died_to):
        return True
    # The last entry may end within a chunk: then it is decoded as far as whole chunks go.
    read = _last_read(flow)
    return settled and read is not None and _order(read) >= _order(died_to)


def _last_read(flow: StreamFlow) -> bytes | None:
    try:
        return flow.undecoded[-1].entry_id
    except IndexError:
        return None


def _assignment(owned: OwnedStream) -> AssignmentEntry:
    return AssignmentEntry(owned.stream, owned.entry_id)


def _order(entry_id: bytes) -> tuple[int, int]:
    """Return the key that sorts audio entries by their ids."""
    connection, seq = entry_id.split(b"-")
    return int(connection), int(seq)
