"""A worker: starts its threads, claims and decodes streams, drains, and ends.

Threads: the main thread waits for signals; `engine` owns the engine; each Redis server has an `intake`, a
`claimer`, an `outlet`, which writes results, and a writer of `snapshots`; `heartbeat` keeps the lease;
`sweeper` takes streams over and cleans up.
"""

from __future__ import annotations

import logging
import os
import signal
import threading
import time
from collections.abc import Mapping, Sequence
from functools import partial
from types import FrameType
from typing import Final

from common.entries import WorkerId
from common.errors import NameTaken
from common.monitoring.metrics import WorkerMetrics
from common.presence import served_model
from common.presence.leases import WorkerLease
from common.presence.status import WorkerReport, unix_time_ms
from common.process.garbage import collect_rarely
from common.process.stop_times import HAND_OVER_S, JOIN_S, STOP_MARGIN_S, StopClock
from common.redis.clients import REDIS_ERROR, RedisServers, SyncRedis, until_redis_answers
from common.redis.grants import WORKER
from common.redis.keys import Keys
from common.redis.requirements import check_servers
from common.settings import WorkerSettings
from common.streams.admission import check_worker_agrees
from common.streams.claims import Claims
from common.tracing.tracer import make_tracer
from gpu_worker.backend import Backend, Elsewhere
from gpu_worker.engine.interface import EngineStats
from gpu_worker.lanes.link import GroupLost
from gpu_worker.ownership.claimer import Claimer
from gpu_worker.ownership.heartbeat import Heartbeat, StatsWindow, check_name
from gpu_worker.ownership.owner import Owner
from gpu_worker.ownership.quarantine import DEFAULT_MODULE, Quarantine
from gpu_worker.ownership.suspects import SuspectRunner
from gpu_worker.ownership.sweeper import Sweeper
from gpu_worker.part import Part
from gpu_worker.pipeline.engine_events import HandOver, MakeRoom
from gpu_worker.pipeline.engine_thread import EngineThread
from gpu_worker.pipeline.flow import StreamFlow, StreamTable
from gpu_worker.pipeline.intake import Intake
from gpu_worker.pipeline.outlet import Outlet
from gpu_worker.pipeline.outlets import Outlets
from gpu_worker.pipeline.snapshot_writer import SnapshotWriter

logger = logging.getLogger(__name__)

EXIT_FAILED: Final = 1
# Exit status where the engine hangs: no thread can be joined any more.
EXIT_HUNG: Final = 70

_WAIT_S: Final = 1.0
# Part of the time to stop that is kept for the last commands to Redis, after which nothing is held; and the
# same again, before the process that started the worker kills it.
_LEAVE_S: Final = 2.0
_MIN_SWEEP_S: Final = 0.05
_MAX_SWEEP_S: Final = 1.0
# Thresholds of the garbage collector. A stream has some dozen objects, and leaves no cycle when it ends. With
# Python's defaults all objects were scanned nine times while 14,000 streams opened, for 80 ms each, in which
# no step began.
COLLECT_AFTER: Final = (4_000, 10, 100)


class Worker:
    """One worker with all its parts. Made after the engine is warm, so that a lease means service.

    quarantined: whether to run only the suspects that are pending under this name (suspects.py).
    quarantine_module: the module that this worker starts for suspects (quarantine.py).
    """

    def __init__(
        self,
        settings: WorkerSettings,
        backend: Backend,
        *,
        quarantined: bool = False,
        quarantine_module: str = DEFAULT_MODULE,
    ) -> None:
        worker, servers = WorkerId(settings.worker_id), RedisServers.of(settings)
        keys = Keys(servers.shards)
        lease_s = settings.lease_ms / 1000
        self._settings = settings
        self._backend = backend
        self.metrics = WorkerMetrics()
        self._worker = worker
        self._redis = SyncRedis(servers)
        # Its own connections: a slow reply to another thread must not cost the lease.
        self._lease_redis = SyncRedis(servers)
        self._keys = keys
        self._stop = threading.Event()
        self._hurry = threading.Event()
        self._failure: BaseException | None = None
        self._draining = False
        # The running parts. `_begin` starts a part and adds it here, so that each is watched.
        self._running: list[Part] = []
        self._started_ms = unix_time_ms()
        self._window = StatsWindow(backend.engine.stats, time.monotonic())
        chunk_ms = int(backend.description["chunk_ms"])
        self._tracer = make_tracer(settings, "worker", settings.worker_id)
        self._table = StreamTable(
            min(settings.worker_max_streams, backend.engine.capacity), chunk_ms, self._tracer, worker
        )
        self._quarantined = quarantined
        self._claims = Claims(self._redis, keys, worker, chunk_ms=chunk_ms)
        self._quarantine = Quarantine(settings, self._claims, self._redis.cluster, keys, quarantine_module)
        self._snapshots = [
            SnapshotWriter(self._redis, self._claims, self._table, self.metrics, server)
            for server in range(servers.num_servers)
        ]
        self._outlets = Outlets(
            servers,
            [
                Outlet(
                    redis=self._redis,
                    server=server,
                    keys=keys,
                    worker=worker,
                    claims=self._claims,
                    table=self._table,
                    snapshots=snapshots,
                    metrics=self.metrics,
                    on_fenced=self._fenced,
                    on_refused=self._lost,
                    on_failure=self.fail,
                    dead_letters=settings.dead_letters,
                    redis_loss_ms=settings.redis_loss_ms,
                )
                for server, snapshots in enumerate(self._snapshots)
            ],
        )
        self._engine = EngineThread(
            backend.engine, self._outlets, settings.replay_seconds, self.metrics, self.fail
        )
        backend.wake_with(self._engine.wake)
        self._intakes = [
            Intake(
                servers=servers,
                server=server,
                keys=keys,
                worker=worker,
                table=self._table,
                put=self._engine.put,
                metrics=self.metrics,
                on_lost=self._lost,
            )
            for server in range(servers.num_servers)
        ]
        self._owner = Owner(
            servers=servers,
            claims=self._claims,
            table=self._table,
            intakes=self._intakes,
            engine=self._engine,
            sink=self._outlets,
            quarantine=self._quarantine,
            metrics=self.metrics,
        )
        self._suspects = SuspectRunner(
            client=self._redis.cluster,
            keys=keys,
            worker=worker,
            claims=self._claims,
            table=self._table,
            owner=self._owner,
            engine=self._engine,
            done=self._stop.set,
        )
        self._claimers: list[Claimer] | list[SuspectRunner] = (
            [self._suspects]
            if quarantined
            else [
                Claimer(
                    servers=servers,
                    server=server,
                    redis=self._redis,
                    claims=self._claims,
                    table=self._table,
                    owner=self._owner,
                )
                for server in range(servers.num_servers)
            ]
        )
        self._lease = WorkerLease(self._lease_redis.cluster, keys, worker, settings.lease_ms)
        self._sweeper = Sweeper(
            redis=self._redis,
            lease=WorkerLease(self._redis.cluster, keys, worker, settings.lease_ms),
            worker=worker,
            claims=self._claims,
            table=self._table,
            owner=self._owner,
            quarantine=self._quarantine,
            on_full=lambda: self._engine.put(MakeRoom()),
            period_s=max(_MIN_SWEEP_S, min(lease_s / 4, _MAX_SWEEP_S)),
        )
        self._heartbeat = Heartbeat(
            lease=self._lease,
            lease_s=lease_s,
            step_timeout_s=settings.step_timeout_ms / 1000,
            busy_s=lambda: self._engine.busy_s,
            report=self._report,
            agree=self._keep_model,
            description=backend.description,
            counts=backend.counts,
            metrics=self.metrics,
            on_replaced=lambda: self.fail(NameTaken(worker)),
            on_lapsed=self._sweeper.revalidate,
            on_hung=self._hung,
        )

    @property
    def capacity(self) -> int:
        """Number of streams that it can own at once."""
        return self._table.capacity

    @property
    def measured_streams(self) -> int:
        """Number of streams that it carries in real time, as measured at its start; 0 if not measured."""
        capacity = self._backend.capacity
        return 0 if capacity is None else capacity.num_streams

    @property
    def engine_stats(self) -> EngineStats:
        """Return counters and gauges of the engine."""
        return self._backend.engine.stats

    @property
    def engine_busy_s(self) -> float:
        """Return seconds since the engine's present turn began; 0 while it waits."""
        return self._engine.busy_s

    @property
    def serving(self) -> bool:
        """Whether it has joined its cluster, and takes streams."""
        return self._heartbeat.alive and not self._draining

    @property
    def draining(self) -> bool:
        """Whether it takes no new stream."""
        return self._draining

    def counts(self) -> Mapping[str, int | float]:
        """Return counters of work beside the engine, such as smart-turn."""
        return self._backend.counts()

    def holds_lease(self, now: float) -> bool:
        """Return whether the lease is known to hold at this time (monotonic seconds)."""
        return self._heartbeat.holds_lease(now)

    def run(self) -> int:
        """Serve until a signal or a failure; return the exit status. Raises SettingsMismatch, NameTaken."""
        if not (self._join_cluster() and self._start()) and self._failure is None:
            logger.info("stopped before Redis was there")
            if self._quarantined:
                self._release_lease()  # which its worker has taken for it, and cannot release if it is dead
            return 0
        while not self._stop.wait(_WAIT_S):
            self._check_threads()
        return self._drain() if self._failure is None else self._give_up()

    def request_stop(self, number: int, _frame: FrameType | None) -> None:
        """Handle a signal: the first asks to drain, the second to hand over at once."""
        logger.info("%s", signal.Signals(number).name)
        if self._stop.is_set():
            self._hurry.set()
        self._stop.set()

    def fail(self, error: BaseException) -> None:
        """End the worker for an error in one of its threads; only the first error is kept."""
        if self._failure is None:
            self._failure = error
        self._take_no_more()
        self._stop.set()

    def _take_no_more(self) -> None:
        """Claim nothing more: streams of other failing workers would see one more owner die here."""
        self._sweeper.stop_taking()
        for claimer in self._claimers:
            claimer.request_stop()

    def look_for_suspects(self) -> None:
        """Tell a quarantined worker that suspects were assigned to it."""
        self._suspects.wake()

    def _join_cluster(self) -> bool:
        """Agree with the cluster once every server answers; a worker may be started before Redis is.

        Returns False if the worker has to stop before that. Raises UnfitRedis, SettingsMismatch, NameTaken.
        """
        servers, told = self._redis.servers, False
        while not self._stop.is_set():
            try:
                check_servers(servers.addresses, servers.timeout_ms / 1000, WORKER, self._stop.is_set)
                if not (self._quarantined or self._stop.is_set()):  # a starter holds the former's lease
                    check_name(self._lease, self._worker, self._stop)
                if self._stop.is_set():
                    break
                check_worker_agrees(self._redis.cluster, self._keys)
                self._keep_model()
                self._claims.prepare()
            except (REDIS_ERROR, OSError) as error:
                if not told:
                    logger.warning("waiting for Redis: %s", error)
                    told = True
                self._stop.wait(_WAIT_S / 4)
            else:
                return True
        return False

    def _start(self) -> bool:
        """Start all parts. Returns False if the worker has to stop before Redis answers again."""
        collect_rarely(*COLLECT_AFTER)
        self._begin(*self._outlets.outlets, *self._snapshots, self._engine, *self._intakes)
        if self._quarantined:
            self._draining = True  # so that it does not count towards the cluster's capacity
            self._sweeper.stop_taking()
        # Take back the streams of an earlier process with this id before the lease is held again, so that no
        # other process takes that owner for alive in between.
        elif not until_redis_answers(self._sweeper.take_own, logger, self._stop):
            return False
        if not until_redis_answers(partial(self._begin, self._heartbeat), logger, self._stop):
            return False
        self._begin(self._sweeper, *self._claimers)
        logger.info(
            "worker ready with %d slots, --max-num-streams %d, carries %s, %s",
            self._table.capacity,
            self._settings.max_num_streams,
            self._backend.capacity or "what was not measured",
            ", ".join(f"{name} {value}" for name, value in self._backend.description.items()),
        )
        return True

    def _begin(self, *parts: Part) -> None:
        for part in parts:
            part.start()
            self._running.append(part)

    def _check_threads(self) -> None:
        for part in self._running:
            if not part.alive:
                self.fail(RuntimeError(f"a thread ended: {type(part).__name__}"))

    def _keep_model(self) -> None:
        self._backend.served.agree(self._lease_redis.cluster, self._keys, self._settings.lease_ms)

    def _report(self) -> WorkerReport:
        return self._window.report(
            time.monotonic(),
            capacity=self._table.capacity,
            owned=len(self._table),
            draining=self._draining,
            started_ms=self._started_ms,
        )

    def _lost(self, flows: Sequence[StreamFlow]) -> None:
        self._owner.look_at_lost(flows)

    def _fenced(self, flows: Sequence[StreamFlow]) -> None:
        self._owner.look_at_lost(flows, fenced=True)

    def _hung(self, busy_s: float) -> None:
        """Release the streams to other workers and end: the engine hangs, so no thread can be joined."""
        logger.critical("the engine has hung for %.1f s, giving up", busy_s)
        self._take_no_more()
        elsewhere = self._backend.elsewhere
        if elsewhere is not None and (elsewhere.is_waited_for() or self._engine.between_turns):
            self._spare_bystanders(elsewhere)
        self._release_lease()
        logging.shutdown()
        os._exit(EXIT_HUNG)

    def _release_lease(self) -> None:
        try:
            self._lease.release()
        except (REDIS_ERROR, OSError) as error:
            logger.warning("the lease could not be given back, it will lapse: %s", error)

    def _give_up(self) -> int:
        """End after a failure: other workers get the streams at once. Raises NameTaken."""
        if isinstance(self._failure, NameTaken):  # lease and streams are the other process's
            raise self._failure
        logger.critical("the worker has failed, giving up: %r", self._failure)
        if self._heartbeat.alive:
            self._heartbeat.stop(JOIN_S)
        if isinstance(self._failure, GroupLost) and self._backend.elsewhere is not None:
            self._spare_bystanders(self._backend.elsewhere)
        self._release_lease()
        return EXIT_FAILED

    def _spare_bystanders(self, elsewhere: Elsewhere) -> None:
        """Release the streams that the process with the device was not working on: they cannot be the cause.

        Done at once, since the lease lapses soon. Streams of a claim under way have decoded nothing here.
        """
        in_hand = elsewhere.in_hand()
        self._let_go([flow for flow in self._table.flows() if flow.stream not in in_hand])

    def _drain(self) -> int:
        """Take nothing new, finish what ends in time, hand the rest over."""
        # The clock bounds the waits of the drain. This bounds other waits, such as a call of Redis.
        last = threading.Timer(self._settings.drain_timeout_s + STOP_MARGIN_S - _LEAVE_S, self._out_of_time)
        last.daemon = True
        last.start()
        try:
            return self._drain_in_order()
        finally:
            last.cancel()

    def _out_of_time(self) -> None:
        logger.critical("the stop has taken all of its time, giving up")
        logging.shutdown()
        os._exit(EXIT_FAILED)

    def _drain_in_order(self) -> int:
        self._draining = True
        drain_s = self._settings.drain_timeout_s
        deadline = time.monotonic() + drain_s
        clock = StopClock(drain_s + STOP_MARGIN_S - 2 * _LEAVE_S)
        logger.info("draining: %d streams", len(self._table))
        self._sweeper.stop_taking()
        self._quarantine.request_stop()
        self._end(clock, JOIN_S, self._claimers)
        while time.monotonic() < deadline and not self._hurry.is_set() and self._failure is None:
            if self._table.wait_until_empty(min(_WAIT_S / 4, deadline - time.monotonic())):
                break
            self._check_threads()
        if self._failure is not None:
            return self._give_up()
        left = len(self._table)
        self._let_go(self._table.flows())
        self._end(clock, JOIN_S, self._intakes)
        self._engine.put(HandOver())
        handed_over = self._wait_handed_over(clock.left_s(HAND_OVER_S))
        if handed_over is None:
            return self._give_up()
        if left:
            logger.info("%d streams handed over%s", left, "" if handed_over else ", not all in time")
        self._engine.stop(clock.left_s(JOIN_S))
        self._outlets.stop(clock.left_s(JOIN_S))
        self._quarantine.stop(clock.left_s(JOIN_S))  # it has had all this time to hand its streams over
        for part in (*self._snapshots, self._sweeper, self._heartbeat):
            part.request_stop()
        group = StopClock(clock.left_s(3 * JOIN_S))
        for part in (*self._snapshots, self._sweeper, self._heartbeat):
            part.stop(group.left_s(JOIN_S))
        self._leave()
        self._redis.close()
        self._lease_redis.close()
        self._table.end_spans()
        self._tracer.close()
        logger.info("worker stopped")
        return 0

    def _wait_handed_over(self, timeout_s: float) -> bool | None:
        """Return whether all was handed over in time; None if the worker fails meanwhile."""
        deadline = time.monotonic() + timeout_s
        while (left_s := deadline - time.monotonic()) > 0:
            if self._outlets.wait_handed_over(min(_WAIT_S / 4, left_s)):
                return True
            if self._failure is not None:
                return None
        return False

    def _end(self, clock: StopClock, most_s: float, parts: Sequence[Part]) -> None:
        """End the parts of one kind, of all servers in parallel, within the time for one part."""
        for part in parts:
            self._running.remove(part)
            part.request_stop()
        group = StopClock(clock.left_s(most_s))
        for part in parts:
            part.stop(group.left_s(most_s))

    def _let_go(self, flows: Sequence[StreamFlow]) -> None:
        """Note in Redis that streams are handed over, so that they do not count as the cause of a death."""
        try:
            self._claims.let_go([flow.owned for flow in flows], cleared=False)
        except (REDIS_ERROR, OSError) as error:
            logger.warning("streams could not be let go in order: %s", error)

    def _leave(self) -> None:
        """Release the lease; if no stream is left, leave nothing of this worker in Redis."""
        self._release_lease()
        try:
            if self._claims.remove_consumer(self._worker):
                self._lease.remove(self._worker)
            served_model.leave(self._redis.cluster, self._keys, self._worker)
        except (REDIS_ERROR, OSError) as error:
            logger.warning("not tidied up, another worker will: %s", error)
