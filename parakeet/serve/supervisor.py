"""`parakeet-server serve`: an embedded Redis server, workers and ingress processes, kept running.

The main thread starts every child (the kernel kills them when it ends, see tied_exec.py) and sleeps until a
child dies or a signal arrives. It restarts dead children with bounded back-off. At the end it stops all in
order: ingresses first, which let streams finish, then workers, then Redis.
"""

from __future__ import annotations

import contextlib
import logging
import os
import select
import signal
import sys
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path

from common.addresses import host_and_port
from common.auth.keys_file import read_keys_file
from common.errors import ServiceError
from common.process.backoff import Backoff
from common.process.certificates import ServerTls, ServerTlsFiles
from common.process.machine import Machine
from common.process.stop_times import STOP_MARGIN_S
from common.redis.grants import SERVE
from common.settings import (
    IngressSettings,
    ServeSettings,
    WorkerSettings,
    child_argv,
    child_environment,
    lane_ids,
    new_process_id,
)
from parakeet.serve.child import Child, Launch, describe_exit
from parakeet.serve.embedded_redis import EmbeddedRedis, NoRedisServer
from parakeet.serve.metrics_ports import MetricsPorts
from parakeet.serve.readiness import Roster, check_port_free
from parakeet.serve.worker_plan import check_device, count_gpus, plan_workers

logger = logging.getLogger(__name__)
# The logger of the line that scripts wait for; it is shown at every --log-level.
ready_log = logging.getLogger("parakeet.ready")
ready_log.setLevel(logging.INFO)

INGRESS_START_TIMEOUT_S = 60.0
_POLL_S = 0.1


class StartFailed(ServiceError):  # noqa: N818 - the name says it
    """A child ended, or did not get ready, while the stack was starting."""


class _Stopped(Exception):  # noqa: N818
    """A signal asked to stop while the stack was starting."""


@dataclass(slots=True)
class _Signals:
    """Signals as bytes on a pipe, so that the loop can wait for them."""

    wakeups: int = -1
    _writer: int = -1
    _previous: dict[int, object] = field(default_factory=dict)
    stop_requests: int = 0

    def __enter__(self) -> _Signals:
        self.wakeups, self._writer = os.pipe()
        for end in (self.wakeups, self._writer):
            os.set_blocking(end, False)
        for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
            # nohup ignores SIGHUP, and it stays ignored.
            if signal.getsignal(number) is not signal.SIG_IGN:
                self._previous[number] = signal.signal(number, self._on_stop)
        self._previous[signal.SIGCHLD] = signal.signal(signal.SIGCHLD, lambda *_: None)
        signal.set_wakeup_fd(self._writer, warn_on_full_buffer=False)
        return self

    def __exit__(self, *_: object) -> None:
        signal.set_wakeup_fd(-1)
        for number, handler in self._previous.items():
            signal.signal(number, handler)  # type: ignore[arg-type]
        os.close(self.wakeups)
        os.close(self._writer)

    def _on_stop(self, _number: int, _frame: object) -> None:
        self.stop_requests += 1

    def wait(self, timeout_s: float | None) -> None:
        """Return when a signal has arrived since the last call, or after the time-out."""
        select.select([self.wakeups], [], [], timeout_s)
        with contextlib.suppress(BlockingIOError):
            while os.read(self.wakeups, 512):
                pass


class Supervisor:
    """The stack of one machine; `run` returns the exit status of `serve`."""

    def __init__(self, settings: ServeSettings) -> None:
        self._settings = settings
        self._embedded: EmbeddedRedis | None = None
        self._redis_backoff = Backoff()
        self._redis_restart_at: float | None = None
        self._workers: list[Child] = []
        self._ingresses: list[Child] = []
        self._roster: Roster | None = None
        self._num_gpus = 0
        self._planned: list[WorkerSettings] = []

    def run(self) -> int:
        """Start everything, keep it running until a signal, stop it; return 0 for a requested stop.

        Raises ServiceError for a fault, SettingsError for a wrong flag, after all started processes have
        stopped.
        """
        with _Signals() as signals:
            self._check()
            try:
                self._start(signals)
                self._keep_running(signals)
            except _Stopped:
                logger.info("stopping before the start was complete")
            finally:
                self._stop(signals)
        return 0

    # -- start

    def _check(self) -> None:
        """Check ports, device and cluster, so that a wrong value is reported before a model is loaded."""
        ingress, worker = self._settings.ingress, self._settings.worker
        for flag, port in (
            ("--port", ingress.port),
            ("--ws-port", ingress.ws_port),
            ("--status-port", ingress.status_port),
        ):
            check_port_free(ingress.host, port, flag)
        if ingress.auth_keys_file:
            read_keys_file(Path(ingress.auth_keys_file))
        if ingress.tls_cert:
            ServerTls(ServerTlsFiles.of(ingress))
        if ingress.redis_url:
            roster = Roster(ingress)
            try:
                roster.check_servers(SERVE)
                roster.check_agreement(ingress)
            finally:
                roster.close()
        # This check is last, since it may take seconds. The null engine uses no device.
        if worker.backend != "null" and self._settings.num_workers != 0:
            num_gpus = count_gpus(worker.device)
            if num_gpus is not None:
                check_device(worker.device, num_gpus)
            self._num_gpus = num_gpus or 0
        self._planned = plan_workers(self._settings, self._num_gpus, Machine.here())
        MetricsPorts(self._settings, self._planned).check()

    def _start(self, signals: _Signals) -> None:
        redis_url = self._start_redis()
        ingress, planned = self._settings.ingress, self._planned
        # An embedded server loses all or nothing.
        loss_ms = ingress.redis_loss_ms if self._embedded is None else 0
        ingress = replace(ingress, redis_url=redis_url, redis_loss_ms=loss_ms)
        roster = self._roster = Roster(ingress)
        roster.check_servers(SERVE)
        lanes = planned[0].lanes if planned else 1
        ports = MetricsPorts(self._settings, planned)
        for index, worker in enumerate(planned):
            watched = replace(
                worker, redis_url=redis_url, redis_loss_ms=loss_ms, metrics_port=ports.of_worker(index)
            )
            self._workers.append(Child(f"worker {index}", _launcher("gpu_worker", watched)))
        self._start_children(
            signals,
            self._workers,
            lambda worker: all(map(roster.has_worker, lane_ids(worker, lanes))),
            self._settings.start_timeout_s,
        )

        for index in range(self._settings.num_ingress):
            watched_ingress = replace(ingress, metrics_port=ports.of_ingress(index))
            self._ingresses.append(Child(f"ingress {index}", _launcher("ingress", watched_ingress)))
        self._start_children(signals, self._ingresses, roster.has_ingress, INGRESS_START_TIMEOUT_S)
        ready_log.info("%s", self._ready_line(roster))

    def _start_redis(self) -> tuple[str, ...]:
        if self._settings.ingress.redis_url:
            return self._settings.ingress.redis_url
        self._embedded = EmbeddedRedis(maxmemory_mb=self._settings.redis_maxmemory_mb)
        self._redis_backoff.started(time.monotonic())
        self._embedded.start()
        logger.info(
            "embedded %s, pid %s: redis-cli -s %s",
            self._embedded.server_name,
            self._embedded.pid,
            self._embedded.socket_path,
        )
        return (self._embedded.url,)

    def _start_children(
        self, signals: _Signals, children: list[Child], is_ready: Callable[[str], bool], timeout_s: float
    ) -> None:
        """Start the children and wait until each is ready; raise StartFailed when one is not."""
        for child in children:
            try:
                child.start()
            except OSError as error:
                raise StartFailed(f"{child.name} could not be started: {error}.") from error
        deadline = time.monotonic() + timeout_s
        waiting = list(children)
        while waiting:
            if signals.stop_requests:
                raise _Stopped
            for child in children:
                if (returncode := child.exited()) is not None:
                    raise StartFailed(
                        f"{child.name} ended with {describe_exit(returncode)} before it was ready"
                        f"{child.last_words}"
                    )
            waiting = [child for child in waiting if not is_ready(child.process_id)]
            if waiting and time.monotonic() > deadline:
                names = ", ".join(child.name for child in waiting)
                raise StartFailed(f"{names} did not get ready within {timeout_s:g} s.")
            if waiting:
                signals.wait(_POLL_S)

    def _ready_line(self, roster: Roster) -> str:
        ingress, worker = self._settings.ingress, self._settings.worker
        ports = [
            f"{name} {host_and_port(ingress.host, port)}"
            for name, port in (
                ("tcp", ingress.port),
                ("websocket", ingress.ws_port),
                ("status", ingress.status_port),
            )
            if port
        ]
        model = worker.model or (worker.backend if worker.backend == "null" else worker.model_size)
        device = worker.device if worker.device != "auto" else "cuda" if self._num_gpus else "cpu"
        return (
            f"ready: {', '.join(ports)}; model {model} on {device}, {_plural(len(self._workers), 'worker')},"
            f" {_plural(len(self._ingresses), 'ingress process', 'es')}; redis {roster.address}"
        )

    # -- keep running

    def _keep_running(self, signals: _Signals) -> None:
        while not signals.stop_requests:
            now = time.monotonic()
            self._mend_redis(now)
            for child in self._children():
                if (returncode := child.exited()) is not None:
                    child.schedule_restart(returncode)
                if child.restart_at is not None and child.restart_at <= now:
                    child.start_again()
            signals.wait(self._next_deadline_s())

    def _mend_redis(self, now: float) -> None:
        """Restart an embedded server that died, empty and at the same address; clients reconnect."""
        if self._embedded is None:
            return
        if self._redis_restart_at is None and (returncode := self._embedded.exited()) is not None:
            wait_s = self._redis_backoff.ended(now)
            self._redis_restart_at = now + wait_s
            logger.error(
                "the embedded Redis server ended with %s, restarting in %.1f s; all streams are lost. %s",
                describe_exit(returncode),
                wait_s,
                self._embedded.log_tail(),
            )
        if self._redis_restart_at is not None and self._redis_restart_at <= now:
            self._redis_restart_at = None
            self._redis_backoff.started(now)
            try:
                self._embedded.start()
            except NoRedisServer as error:
                failed_at = time.monotonic()  # a start may take long to fail
                wait_s = self._redis_backoff.ended(failed_at)
                self._redis_restart_at = failed_at + wait_s
                logger.error("%s Trying again in %.1f s.", error, wait_s)

    def _next_deadline_s(self) -> float | None:
        times = [child.restart_at for child in self._children() if child.restart_at is not None]
        if self._redis_restart_at is not None:
            times.append(self._redis_restart_at)
        return max(0.0, min(times) - time.monotonic()) if times else None

    def _children(self) -> Iterator[Child]:
        yield from self._workers
        yield from self._ingresses

    # -- stop

    def _stop(self, signals: _Signals) -> None:
        """Stop ingress, workers and Redis in this order; a second signal kills the rest at once."""
        patience = signals.stop_requests
        logger.info("stopping; a second signal stops at once")
        for children in (self._ingresses, self._workers):
            self._stop_children(children, lambda: signals.stop_requests > max(patience, 1), signals)
        if self._roster is not None:
            self._roster.close()
        if self._embedded is not None:
            self._embedded.stop()
        logger.info("stopped")

    def _stop_children(
        self, children: Iterable[Child], is_urgent: Callable[[], bool], signals: _Signals
    ) -> None:
        left = [child for child in children if child.running]
        for child in left:
            child.send_signal(signal.SIGTERM)
        deadline = time.monotonic() + self._settings.ingress.drain_timeout_s + STOP_MARGIN_S
        while left and not is_urgent() and time.monotonic() < deadline:
            # SIGCHLD ends the wait.
            signals.wait(deadline - time.monotonic())
            left = [child for child in left if child.running]
        for child in left:
            logger.warning("%s (%s) did not stop, killing it", child.name, child.process_id)
            child.kill()


def _launcher(module: str, settings: IngressSettings | WorkerSettings) -> Callable[[], Launch]:
    """Return a function that makes the command line of each start, with a new process id every time."""

    def launch() -> Launch:
        if isinstance(settings, IngressSettings):
            process_id = new_process_id("i")
            named: IngressSettings | WorkerSettings = replace(settings, ingress_id=process_id)
        else:
            process_id = new_process_id("w")
            named = replace(settings, worker_id=process_id)
        command = (sys.executable, "-m", module, *child_argv(named))
        return Launch(process_id, command, child_environment(named))

    return launch


def _plural(count: int, noun: str, ending: str = "s") -> str:
    return f"{count} {noun}{'' if count == 1 else ending}"
