"""One trial: starts the load processes, watches the server and computes the figures."""

from __future__ import annotations

import multiprocessing
import time
from array import array
from collections.abc import Callable
from dataclasses import dataclass
from multiprocessing.connection import Connection, wait
from multiprocessing.context import SpawnProcess

from parakeet.bench.figures import PartUsage, Percentiles, TrialFigures, verdict
from parakeet.bench.load.process import Share, play
from parakeet.bench.plan import Plan, Sample
from parakeet.bench.server.processes import ServerProcess, Usage, discover, usage
from parakeet.bench.server.redis_usage import RedisCounters, RedisWatch, redis_between

_READY_TIMEOUT_S = 60.0
_START_IN_S = 0.3


@dataclass(frozen=True, slots=True)
class Moment:
    """The server's counters at one time of the trial (seconds since its start)."""

    at_s: float
    usage: dict[int, Usage]
    redis: tuple[RedisCounters, ...]
    bench_cpu_s: float


@dataclass(frozen=True, slots=True)
class Second:
    """The figures of one second of a trial, to be shown while it runs."""

    at_s: float
    live: int
    sent: int
    results: int
    latency: Percentiles
    late: int
    errors: int
    cpu_cores: dict[str, float]


class TrialError(Exception):
    """The load could not be applied."""


class _Load:
    """The load processes and their reports."""

    def __init__(self, plan: Plan) -> None:
        self._context = multiprocessing.get_context("spawn")
        self._processes: list[SpawnProcess] = []
        self.connections: list[Connection] = []
        self.samples: list[list[Sample]] = []
        for index in range(plan.processes):
            ours, theirs = self._context.Pipe()
            process = self._context.Process(
                target=play,
                args=(plan, Share(index, plan.processes), theirs),
                name=f"bench-load-{index}",
                daemon=True,
            )
            process.start()
            theirs.close()
            self._processes.append(process)
            self.connections.append(ours)
            self.samples.append([])

    def begin(self) -> float:
        """Wait until every process has prepared its audio, then start all at one time."""
        for connection in self.connections:
            if not connection.poll(_READY_TIMEOUT_S) or connection.recv() != "ready":
                raise TrialError("a load process did not get ready")
        start_s = time.monotonic() + _START_IN_S
        for connection in self.connections:
            connection.send(start_s)
        return start_s

    def read(self, timeout_s: float) -> None:
        for ready in wait(self.connections, timeout_s):
            assert isinstance(ready, Connection)
            index = self.connections.index(ready)
            try:
                self.samples[index].append(ready.recv())
            except EOFError:
                if not self.done(index):
                    raise TrialError("a load process died") from None
                time.sleep(0.01)

    def done(self, index: int) -> bool:
        samples = self.samples[index]
        return bool(samples) and samples[-1].done

    @property
    def all_done(self) -> bool:
        return all(self.done(index) for index in range(len(self.samples)))

    def cpu_s(self) -> float:
        return sum(samples[-1].cpu_s for samples in self.samples if samples)

    def close(self) -> None:
        for connection in self.connections:
            connection.close()
        for process in self._processes:
            process.join(5.0)
            if process.is_alive():
                process.kill()
                process.join()


def run_trial(
    plan: Plan,
    *,
    redis: tuple[str, ...] = (),
    backend: str = "not stated",
    show: Callable[[Second], None] = lambda second: None,
) -> TrialFigures:
    """Apply a plan to a running server.

    Args:
        plan: the load.
        redis: URLs of the server's Redis; if empty, those of the ingress command line.
        backend: name of the engine in the report.
        show: called once a second with the figures of that second.

    Raises:
        TrialError: a load process died or did not get ready.
    """
    processes = discover(plan.targets)
    urls = redis or tuple(sorted({url for process in processes for url in process.redis_urls}))
    watch = RedisWatch(urls)
    load = _Load(plan)
    moments: list[Moment] = []
    deadline_s = plan.ramp_s + plan.duration_s + plan.connect_timeout_s + plan.final_timeout_s + 10
    try:
        start_s = load.begin()

        def take_moment() -> None:
            moments.append(
                Moment(
                    time.monotonic() - start_s,
                    usage(processes),
                    watch.read(),
                    load.cpu_s(),
                )
            )

        take_moment()
        shown = 0
        while not load.all_done:
            load.read(0.25)
            at_s = time.monotonic() - start_s
            if at_s > deadline_s:
                raise TrialError(f"the load did not end within {deadline_s:.0f} s")
            complete = min(len(samples) for samples in load.samples)
            if complete > shown:
                take_moment()
                show(_second(plan, [s[complete - 1] for s in load.samples], moments, processes))
                shown = complete
    finally:
        load.close()
        watch.close()
    return _figures(plan, load, moments, processes, backend)


def _second(
    plan: Plan, samples: list[Sample], moments: list[Moment], processes: tuple[ServerProcess, ...]
) -> Second:
    latencies = array("f")
    for sample in samples:
        latencies.extend(sample.latency_s)
    before, after = moments[-2], moments[-1]
    return Second(
        at_s=samples[0].at_s,
        live=sum(s.live for s in samples),
        sent=sum(s.sent for s in samples),
        results=sum(s.results for s in samples),
        latency=Percentiles.of(latencies),
        late=_late(latencies, plan.chunk_ms),
        errors=sum(sum(s.errors.values()) for s in samples),
        cpu_cores={part.role: part.cpu_cores for part in _parts(plan, before, after, before, processes)},
    )


def _late(latencies: array[float], chunk_ms: int) -> int:
    limit = chunk_ms / 1000
    return sum(1 for latency in latencies if latency > limit)


def _parts(
    plan: Plan,
    before: Moment,
    after: Moment,
    idle: Moment,
    processes: tuple[ServerProcess, ...],
) -> tuple[PartUsage, ...]:
    window_s = max(after.at_s - before.at_s, 1e-9)
    roles: dict[str, list[int]] = {}
    for process in processes:
        if process.pid in before.usage and process.pid in after.usage:
            roles.setdefault(process.role, []).append(process.pid)
    parts = []
    for role, pids in sorted(roles.items()):
        cpu = sum(after.usage[pid].cpu_s - before.usage[pid].cpu_s for pid in pids)
        resident = sum(after.usage[pid].resident_bytes for pid in pids)
        first = sum(idle.usage[pid].resident_bytes if pid in idle.usage else 0 for pid in pids)
        parts.append(
            PartUsage(
                role=role,
                processes=len(pids),
                cpu_cores=round(cpu / window_s, 4),
                cpu_us_per_stream_second=round(1e6 * cpu / window_s / plan.streams, 1),
                resident_bytes=resident,
                resident_growth_per_stream=(resident - first) // plan.streams,
            )
        )
    bench_cpu = after.bench_cpu_s - before.bench_cpu_s
    parts.append(
        PartUsage(
            role="bench",
            processes=plan.processes,
            cpu_cores=round(bench_cpu / window_s, 4),
            cpu_us_per_stream_second=round(1e6 * bench_cpu / window_s / plan.streams, 1),
            resident_bytes=0,
            resident_growth_per_stream=0,
        )
    )
    return tuple(parts)


def _figures(
    plan: Plan,
    load: _Load,
    moments: list[Moment],
    processes: tuple[ServerProcess, ...],
    backend: str,
) -> TrialFigures:
    samples = [sample for reports in load.samples for sample in reports]
    everything, in_window, finals = array("f"), array("f"), array("f")
    errors: dict[str, int] = {}
    for sample in samples:
        everything.extend(sample.latency_s)
        finals.extend(sample.final_s)
        if plan.ramp_s + 1.0 < sample.at_s <= plan.duration_s:
            in_window.extend(sample.latency_s)
        for code, count in sample.errors.items():
            errors[code] = errors.get(code, 0) + count
    before, after = _window(plan, moments)
    expected = plan.streams
    finished = sum(s.finals for s in samples)
    if plan.stream_s:
        expected = finished + sum(errors.values())
    final = Percentiles.of(finals)
    late = _late(everything, plan.chunk_ms)
    lag_s = max((s.lag_s for s in samples), default=0.0)
    return TrialFigures(
        streams=plan.streams,
        message_ms=plan.message_ms,
        chunk_ms=plan.chunk_ms,
        duration_s=plan.duration_s,
        window_s=round(after.at_s - before.at_s, 2),
        targets=tuple(str(target) for target in plan.targets),
        backend=backend,
        messages_sent=sum(s.sent for s in samples),
        results=sum(s.results for s in samples),
        streams_finished=finished,
        streams_expected=expected,
        latency=Percentiles.of(in_window),
        latency_all=Percentiles.of(everything),
        final=final,
        late_chunks=late,
        timed_chunks=len(everything),
        errors=errors,
        generator_lag_max_ms=round(1000 * lag_s, 2),
        parts=_parts(plan, before, after, moments[0], processes),
        redis=redis_between(
            moments[0].redis, before.redis, after.redis, after.at_s - before.at_s, plan.streams
        ),
        failures=verdict(
            chunk_ms=plan.chunk_ms,
            latencies=everything,
            finals=final,
            late=late,
            errors=errors,
            finished=finished,
            expected=expected,
            sent=sum(s.sent for s in samples),
            lagging=sum(s.lagging for s in samples),
        ),
    )


def _window(plan: Plan, moments: list[Moment]) -> tuple[Moment, Moment]:
    """Return the first and last moment at which all streams were live."""
    inside = [m for m in moments if plan.ramp_s + 0.9 <= m.at_s <= plan.duration_s + 0.1]
    if len(inside) < 2:
        return moments[0], moments[-1]
    return inside[0], inside[-1]
