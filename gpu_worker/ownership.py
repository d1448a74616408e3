"""New streams and those of dead workers: two kinds of thread that take what fits into free slots."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Sequence
from typing import Final

from common.audio_reader import extend
from common.claims import Claims, OwnedStream, Suspect
from common.entries import AssignmentEntry, IngressId, WorkerId
from common.errors import ClientFault, EntryError, ErrorCode, StreamLost
from common.leases import WorkerLease
from common.redis import REDIS_ERROR, RedisServers, SyncRedis, blocking_client
from gpu_worker.engine_events import Drop, EventSink, Fail, Failed
from gpu_worker.engine_thread import EngineThread
from gpu_worker.flow import StreamFlow, StreamTable
from gpu_worker.intake import Intake
from gpu_worker.quarantine import Quarantine

logger = logging.getLogger(__name__)

# Streams of one read: a burst is shared among workers in portions of this size.
_MAX_CLAIMS: Final = 4
_BLOCK_MS: Final = 500
# A claimer sets slots aside while it waits. The last free ones it must not keep from the claimers of
# other servers and from takeovers: it then looks, without waiting, this often.
_LOOK_EVERY_S: Final = 0.025
_RETRY_S: Final = 0.2
_SWEEP_S: Final = 1.0


class Owner:
    """Makes assignments into streams of this worker, and lets lost ones go. For any thread."""

    def __init__(
        self,
        servers: RedisServers,
        claims: Claims,
        table: StreamTable,
        intakes: Sequence[Intake],
        engine: EngineThread,
        sink: EventSink,
        redis: SyncRedis,
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


class Claimer:
    """Waits for new streams of one server while there are free slots. A thread."""

    def __init__(
        self,
        servers: RedisServers,
        server: int,
        claims: Claims,
        table: StreamTable,
        owner: Owner,
        redis: SyncRedis,
    ) -> None:
        self._client = blocking_client(servers, server, _BLOCK_MS)
        # The server's number of the connection that waits, while it waits.
        self._waiting: int | None = None
        self._redis = redis
        self._server = server
        self._shards = servers.shards_of_server(server)
        self._plenty = (servers.num_servers + 1) * _MAX_CLAIMS
        self._claims = claims
        self._table = table
        self._owner = owner
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, name=f"claimer-{server}", daemon=True)

    def start(self) -> None:
        """Start the thread."""
        self._thread.start()

    def stop(self, timeout_s: float) -> bool:
        """Claim no more, from now on; a claim under way is finished. False when it did not end in time."""
        self._stop.set()
        deadline = time.monotonic() + timeout_s
        while self._thread.is_alive() and time.monotonic() < deadline:
            self._stop_waiting()
            self._thread.join(_LOOK_EVERY_S)
        return not self._thread.is_alive()

    def _stop_waiting(self) -> None:
        """End the wait: a worker that drains must not be given what comes in the meantime."""
        waiting = self._waiting
        if waiting is None:
            return
        try:
            self._redis.clients[self._server].execute_command("CLIENT UNBLOCK", waiting)
        except (REDIS_ERROR, OSError) as error:
            logger.warning("the wait for new streams goes on to its end: %s", error)

    @property
    def alive(self) -> bool:
        """Whether the thread runs."""
        return self._thread.is_alive()

    def _run(self) -> None:
        while not self._stop.is_set():
            if not self._table.wait_for_slot(_BLOCK_MS / 1000):
                continue
            try:
                self._claim()
            except (REDIS_ERROR, OSError) as error:
                logger.warning("claiming failed, trying again: %s", error)
                self._stop.wait(_RETRY_S)
            except Exception:
                logger.exception("claiming failed")
                self._stop.wait(_RETRY_S)
        self._client.close()

    def _claim(self) -> None:
        scarce = self._table.num_free < self._plenty
        reserved = self._table.reserve(_MAX_CLAIMS)
        entries: list[AssignmentEntry] = []
        try:
            if reserved:
                block_ms = None if scarce else _BLOCK_MS
                # Asked each time: a connection that was lost comes back under another number.
                self._waiting = None if scarce else int(self._client.execute_command("CLIENT ID"))
                if not self._stop.is_set():
                    entries = self._claims.wait(self._client, self._shards, reserved, block_ms)
        except BaseException:
            self._table.unreserve(reserved)
            raise
        finally:
            self._waiting = None
        self._owner.take(entries, reserved)
        if scarce and not entries:
            self._stop.wait(_LOOK_EVERY_S)


class Sweeper:
    """Looks after what events do not tell: dead workers, lapsed leases, dead ingresses, expiries. A thread.

    period_s: between two looks for dead workers.
    """

    def __init__(
        self,
        redis: SyncRedis,
        lease: WorkerLease,
        claims: Claims,
        table: StreamTable,
        owner: Owner,
        worker: WorkerId,
        period_s: float,
        quarantine: Quarantine,
    ) -> None:
        self._redis = redis
        self._quarantine = quarantine
        self._lease = lease
        self._claims = claims
        self._table = table
        self._owner = owner
        self._worker = worker
        self._period_s = period_s
        self._revalidate = threading.Event()
        self._wake = threading.Event()
        self._stop = threading.Event()
        self._taking = True
        self._next_sweep = 0.0
        self._extended: dict[StreamFlow, float] = {}
        self._missing_since: dict[IngressId, float] = {}
        self._strays: set[AssignmentEntry] = set()
        self._thread = threading.Thread(target=self._run, name="sweeper", daemon=True)

    def start(self) -> None:
        """Start the thread."""
        self._thread.start()

    def stop_taking(self) -> None:
        """Take over no more streams."""
        self._taking = False

    def stop(self, timeout_s: float) -> bool:
        """End the thread."""
        self._stop.set()
        self._wake.set()
        self._thread.join(timeout_s)
        return not self._thread.is_alive()

    @property
    def alive(self) -> bool:
        """Whether the thread runs."""
        return self._thread.is_alive()

    def revalidate(self) -> None:
        """Look at once which streams are still ours: the lease had lapsed."""
        self._revalidate.set()
        self._wake.set()

    def _run(self) -> None:
        while not self._stop.is_set():
            self._wake.wait(self._period_s)
            self._wake.clear()
            try:
                self._round(time.monotonic())
            except (REDIS_ERROR, OSError) as error:
                logger.warning("the sweep failed, trying again: %s", error)
            except Exception:
                logger.exception("the sweep failed")

    def _round(self, now: float) -> None:
        self._quarantine.look()
        if self._revalidate.is_set():
            self._check_ownership()
            self._revalidate.clear()
        if self._taking:
            self._take_over()
        if now >= self._next_sweep:
            self._next_sweep = now + _SWEEP_S
            flows = self._table.flows()
            self._extend(flows, now)
            self._finish_orphans(flows, now)
            if self._taking:
                self._take_strays()

    def _check_ownership(self) -> None:
        flows = self._table.flows()
        kept = self._claims.still_owned([flow.owned for flow in flows])
        for flow, ours in zip(flows, kept, strict=True):
            if not ours:
                self._owner.lost(flow)
        logger.info("streams checked after a lapsed lease: %d of %d kept", sum(kept), len(kept))

    def _take_over(self) -> None:
        for dead in self._lease.lapsed_workers():
            self._take(dead)
            if self._claims.num_pending(dead) == 0 and self._lease.forget(dead):
                self._claims.forget_consumer(dead)
                logger.info("dead worker cleaned up: %s", dead)

    def take_own(self) -> None:
        """Take back what a process with this worker's id owned before it died."""
        self._take(self._worker)

    def _take_strays(self) -> None:
        """Open streams that were claimed and not opened, because Redis went away in between."""
        if self._claims.num_pending(self._worker) <= len(self._table):
            self._strays = set()
            return
        entries = self._claims.pending_of(self._worker, self._table.capacity)
        found = {entry for entry in entries if self._table.get(entry.stream) is None}
        # One that is being opened just now looks the same: only what was there a second ago is stray.
        strays = [entry for entry in entries if entry in found & self._strays]
        self._strays = found
        if strays:
            reserved = self._table.reserve(len(strays))
            self._owner.take(strays[:reserved], reserved)

    def _take(self, dead: WorkerId) -> None:
        reserved = self._table.reserve(self._table.capacity)
        entries: list[AssignmentEntry] = []
        try:
            if reserved:
                entries = self._claims.pending_of(dead, reserved)
        except BaseException:
            self._table.unreserve(reserved)
            raise
        self._owner.take(entries, reserved)

    def _extend(self, flows: Sequence[StreamFlow], now: float) -> None:
        """Put the expiry of our streams forward, at a quarter of their time to live."""
        due = [flow for flow in flows if now >= self._extended.get(flow, 0.0)]
        if due:
            ttls = [(flow.owned.keys, flow.owned.record.ttl_ms) for flow in due]
            gone = set(extend(self._redis, ttls))
            for flow in due:
                if flow.owned.keys in gone:
                    self._owner.lost(flow)
        alive = set(flows)
        self._extended = {flow: at for flow, at in self._extended.items() if flow in alive}
        for flow in due:
            self._extended[flow] = now + flow.owned.record.ttl_ms / 4000

    def _finish_orphans(self, flows: Sequence[StreamFlow], now: float) -> None:
        """End streams whose ingress died and that nobody resumed within their grace."""
        by_ingress = self._table.ingresses(flow for flow in flows if not flow.ended)
        missing = self._lease.missing_ingresses(by_ingress)
        self._missing_since = {ingress: self._missing_since.get(ingress, now) for ingress in missing}
        for ingress, since in self._missing_since.items():
            for flow in by_ingress[ingress]:
                # Seen twice: after a pause of Redis everybody is late for a moment.
                if now - since >= max(flow.owned.record.grace_ms / 1000, _SWEEP_S):
                    logger.info("stream ended, its ingress is gone", extra={"stream_id": flow.stream})
                    self._owner.intake_of(flow.owned).finish(flow)
