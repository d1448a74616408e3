"""The sweep: takes over the streams of dead workers, and ends the streams of dead ingresses."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Final

from common.entries import AssignmentEntry, IngressId, WorkerId
from common.presence.leases import WorkerLease
from common.redis.clients import REDIS_ERROR, SyncRedis
from common.redis.keys import StreamKeys
from common.redis.outages import OUTAGES
from common.redis.requirements import memory_share
from common.streams.claims import Claims
from gpu_worker.ownership.owner import Owner
from gpu_worker.ownership.quarantine import Quarantine
from gpu_worker.part import Part
from gpu_worker.pipeline.flow import StreamFlow, StreamTable

logger = logging.getLogger(__name__)

_SWEEP_S: Final = 1.0
# Part of its memory from which a server counts as full: it may refuse audio that it has no room for, and be
# below its limit again when it is asked.
_FULL: Final = 0.98


class Sweeper(Part):
    """Handles what no event reports: dead workers, lapsed leases, dead ingresses, expiries. A thread.

    on_full: called every second while a server of Redis is full.
    period_s: seconds between two searches for dead workers.
    """

    def __init__(
        self,
        *,
        redis: SyncRedis,
        lease: WorkerLease,
        worker: WorkerId,
        claims: Claims,
        table: StreamTable,
        owner: Owner,
        quarantine: Quarantine,
        on_full: Callable[[], None],
        period_s: float,
    ) -> None:
        super().__init__("sweeper")
        self._redis = redis
        self._servers = redis.servers
        self._quarantine = quarantine
        self._on_full = on_full
        self._lease = lease
        self._claims = claims
        self._table = table
        self._owner = owner
        self._worker = worker
        self._period_s = period_s
        self._revalidate = threading.Event()
        self._wake = threading.Event()
        self._taking = True
        self._next_sweep = 0.0
        self._extended: dict[StreamFlow, float] = {}
        # Streams without an ingress: the ingress that they had, and since when it is gone.
        self._orphans: dict[StreamFlow, tuple[IngressId, float]] = {}
        # By server: streams that were claimed and not opened when they were last looked at.
        self._strays: dict[int, set[AssignmentEntry]] = {}
        # Servers whose streams are to be checked since the lease had lapsed.
        self._unchecked: set[int] = set()

    def stop_taking(self) -> None:
        """Take over no more streams."""
        self._taking = False

    def request_stop(self) -> None:
        """Begin to end, at once."""
        super().request_stop()
        self._wake.set()

    def revalidate(self) -> None:
        """Check at once which streams this worker still owns: its lease had lapsed."""
        self._revalidate.set()
        self._wake.set()

    def _run(self) -> None:
        while not self._stop.is_set():
            self._wake.wait(self._period_s)
            self._wake.clear()
            try:
                self._round(time.monotonic())
            except (REDIS_ERROR, OSError) as error:
                OUTAGES.log_retry(logger, "the sweep failed, trying again: %s", error)
            except Exception:
                logger.exception("the sweep failed")

    def _round(self, now: float) -> None:
        """Sweep each server by itself: streams on those that answer do not wait for one that is away.

        Raises the first error of the Redis client, at the end.
        """
        failures: list[Exception] = []
        if self._revalidate.is_set():
            self._revalidate.clear()
            self._unchecked = set(range(self._servers.num_servers))
        sweeps = now >= self._next_sweep
        if sweeps:
            self._next_sweep = now + _SWEEP_S
        dead: list[WorkerId] = []
        with _noting(failures):
            self._quarantine.look()
            dead = self._lease.lapsed_workers() if self._taking else []
        for server in range(self._servers.num_servers):
            with _noting(failures):
                self._sweep(server, dead, now, sweeps=sweeps)
        with _noting(failures):
            if not failures:
                self._clean_up(dead)
            if sweeps:
                self._finish_orphans(self._table.flows(), now)
        if failures:
            raise failures[0]

    def _sweep(self, server: int, dead: Sequence[WorkerId], now: float, *, sweeps: bool) -> None:
        if server in self._unchecked:
            self._check_ownership(server)
            self._unchecked.discard(server)
        for worker in dead:
            self._take(worker, server)
        if sweeps:
            self._extend(self._flows_on(server), now)
            if memory_share(self._redis.clients[server].execute_command("INFO", "memory")) > _FULL:
                self._on_full()
            if self._taking:
                self._look_at_owners(server)

    def _flows_on(self, server: int) -> list[StreamFlow]:
        flows = self._table.flows()
        if self._servers.num_servers == 1:  # a look at each of 14,000 streams takes milliseconds
            return flows
        server_of_shard = self._servers.server_of_shard
        return [flow for flow in flows if server_of_shard(flow.owned.keys.shard) == server]

    def _check_ownership(self, server: int) -> None:
        flows = self._flows_on(server)
        kept = self._claims.still_owned([flow.owned for flow in flows])
        self._owner.look_at_lost([flow for flow, ours in zip(flows, kept, strict=True) if not ours])
        logger.info("streams checked after a lapsed lease: %d of %d kept", sum(kept), len(kept))

    def _clean_up(self, dead: Sequence[WorkerId]) -> None:
        for worker in dead:
            if not self._claims.owners()[worker] and self._lease.remove(worker):
                self._claims.remove_consumer(worker)
                logger.info("dead worker cleaned up: %s", worker)

    def take_own(self) -> None:
        """Take back the streams that a process with this worker's id owned before it died.

        Raises the Redis client's errors; it may then be called again, and opens what is not open yet.
        """
        for server in range(self._servers.num_servers):
            self._take(self._worker, server, self._table.flows())

    def _look_at_owners(self, server: int) -> None:
        """Find streams that nobody decodes, without a lease that lapses; keep all assignments."""
        owners = self._claims.owners(self._servers.shards_of_server(server))
        if owners and (found := self._lease.register(owners)):
            logger.warning("%d owners of streams were not registered", found)
        self._take_strays(server, owners[self._worker])

    def _take_strays(self, server: int, num_owned: int) -> None:
        """Open streams that were claimed and not opened, because Redis went away in between."""
        before = self._strays.pop(server, set())
        if num_owned <= len(self._flows_on(server)):
            return
        shards = self._servers.shards_of_server(server)
        entries = self._claims.pending_of(self._worker, self._table.capacity, shards)
        found = {entry for entry in entries if self._table.get(entry.stream) is None}
        # A stream that is just being opened looks the same: only streams that were there a second ago are
        # strays.
        strays = [entry for entry in entries if entry in found & before]
        self._strays[server] = found
        if strays:
            reserved = self._table.reserve(len(strays))
            self._owner.open(strays[:reserved], reserved)

    def _take(self, dead: WorkerId, server: int, opened: Sequence[StreamFlow] = ()) -> None:
        shards = self._servers.shards_of_server(server)
        # Asked before slots are reserved: a server that is away would keep them from the streams of others.
        reserved = self._table.reserve(self._claims.owners(shards)[dead])
        entries: list[AssignmentEntry] = []
        try:
            if reserved:
                streams = {flow.stream for flow in opened}
                found = self._claims.pending_of(dead, reserved, shards)
                entries = [entry for entry in found if entry.stream not in streams]
        except BaseException:
            self._table.unreserve(reserved)
            raise
        self._owner.open(entries, reserved)

    def _extend(self, flows: Sequence[StreamFlow], now: float) -> None:
        """Renew the expiry of this worker's streams, at a quarter of their time to live."""
        due = [flow for flow in flows if now >= self._extended.get(flow, 0.0)]
        if due:
            ttls = [(flow.owned.keys, flow.owned.record.ttl_ms) for flow in due]
            gone = set(_renew(self._redis, ttls))
            self._owner.look_at_lost([flow for flow in due if flow.owned.keys in gone])
            self._follow(due)
        alive = set(self._table.flows())
        self._extended = {flow: at for flow, at in self._extended.items() if flow in alive}
        for flow in due:
            self._extended[flow] = now + flow.owned.record.ttl_ms / 4000

    def _follow(self, flows: Sequence[StreamFlow]) -> None:
        """Read the ingress of streams from their records: one that died right then has appended no entry."""
        before = [flow.ingress for flow in flows]
        ingresses = self._claims.ingresses([flow.owned for flow in flows])
        for flow, had, ingress in zip(flows, before, ingresses, strict=True):
            if ingress is not None and flow.ingress == had:  # no entry has come meanwhile
                flow.ingress = ingress

    def _finish_orphans(self, flows: Sequence[StreamFlow], now: float) -> None:
        """End streams whose ingress died and that no client resumed within their grace period.

        The time counts for each stream: the ingress of a stream that was taken over may be long gone, until
        its replay reaches the entry with which another ingress resumed it.
        """
        by_ingress = self._table.ingresses(flow for flow in flows if not flow.ended)
        missing = self._lease.missing_ingresses(by_ingress)
        before, self._orphans = self._orphans, {}
        for ingress in missing:
            for flow in by_ingress[ingress]:
                had, since = before.get(flow, (ingress, now))
                since = since if had == ingress else now
                self._orphans[flow] = ingress, since
                # Seen twice: after a pause of Redis every process is late for a moment.
                if now - since >= max(flow.owned.record.grace_ms / 1000, _SWEEP_S):
                    logger.info("stream ended, its ingress is gone", extra={"stream_id": flow.stream})
                    self._owner.intake_of(flow.owned).finish(flow)


@contextmanager
def _noting(failures: list[Exception]) -> Iterator[None]:
    """Note an error of the Redis client and go on."""
    try:
        yield
    except (REDIS_ERROR, OSError) as error:
        failures.append(error)


def _renew(redis: SyncRedis, streams: Sequence[tuple[StreamKeys, int]]) -> list[StreamKeys]:
    """Renew the expiry of streams, given with their time to live in ms; return the streams that are gone."""
    by_server: dict[int, list[tuple[StreamKeys, int]]] = {}
    for keys, ttl_ms in streams:
        by_server.setdefault(redis.servers.server_of_shard(keys.shard), []).append((keys, ttl_ms))
    gone: list[StreamKeys] = []
    for server, group in by_server.items():
        replies = redis.clients[server].run(
            [("PEXPIRE", key, ttl_ms) for keys, ttl_ms in group for key in keys.renewed]
        )
        for reply in replies:
            if isinstance(reply, Exception):
                raise reply
        per_stream = len(group[0][0].renewed)
        gone += [keys for (keys, _), kept in zip(group, replies[::per_stream], strict=True) if not kept]
    return gone
