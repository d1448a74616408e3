"""A discrete-event model of a chunk's path, calibrated by a bench run, for machines without measurements.

from benchmarks.command_line import command_line
    python -m benchmarks.scaling_model benchmarks/results/<bench>.json            check against its trials
    python -m benchmarks.scaling_model <bench>.json --cores 16 --streams 4000 --ingresses 4 --workers 2

Every process (load generator, ingresses, Redis servers, workers) does one thing at a time and needs a
core for it; tasks wait for their process, then for a core. The batching rules are those of the server:
commits of an ingress and rounds of a worker begin at least so far apart, and each takes all that waits.
What a task costs is fitted to the bench run: CPU of a part = fixed part (per batch) + share of each chunk,
by least squares over its trials. The model knows nothing of the network, of the kernel's scheduling
classes, or of a GPU.
"""

from __future__ import annotations

import heapq
import itertools
import json
import random
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from benchmarks.command_line import command_line

CHUNK_S = 0.16
# Of a part's cost for a chunk, what falls on the way in; the rest falls on the way out. From profiles.
INGRESS_IN = 0.6
REDIS_APPEND, REDIS_READ = 0.3, 0.45
# Reports of the load generator's wheel a second.
BENCH_BATCHES_PER_S = 500.0


@dataclass(frozen=True, slots=True)
class Cost:
    """Seconds of one core: for a batch, and for each chunk in it."""

    batch_s: float
    chunk_s: float


@dataclass(frozen=True, slots=True)
class Machine:
    """The numbers of processes and cores, and the intervals between batches."""

    cores: int
    ingresses: int = 1
    redis: int = 1
    workers: int = 1
    benches: int = 1
    commit_every_s: float = 0.005
    round_every_s: float = 0.006


def fit(trials: Sequence[dict[str, Any]], machine: Machine) -> dict[str, Cost]:
    """Costs by role, from the trials of a bench at several numbers of streams on such a machine."""
    # Batches a second of a loaded part, over which its fixed cost is spread.
    commits_per_s, rounds_per_s = 1 / machine.commit_every_s, 1 / machine.round_every_s
    per_s = {
        "ingress": commits_per_s + rounds_per_s,
        "redis": commits_per_s + 3 * rounds_per_s,
        "worker": rounds_per_s,
        "bench": BENCH_BATCHES_PER_S,
    }
    costs = {}
    for role, batches_per_s in per_s.items():
        points = [
            (trial["streams"], part["cpu_cores"])
            for trial in trials
            for part in trial["parts"]
            if part["role"] == role
        ]
        mean_x = sum(x for x, _ in points) / len(points)
        mean_y = sum(y for _, y in points) / len(points)
        spread = sum((x - mean_x) ** 2 for x, _ in points)
        slope = sum((x - mean_x) * (y - mean_y) for x, y in points) / spread if spread else mean_y / mean_x
        fixed = max(0.0, mean_y - slope * mean_x)
        costs[role] = Cost(fixed / batches_per_s, slope * CHUNK_S)
    return costs


@dataclass(slots=True)
class _Process:
    """Does its tasks one after the other: (cost in seconds, what follows)."""

    tasks: deque[tuple[float, Callable[[], None]]] = field(default_factory=deque)
    queued: bool = False


class Simulation:
    """One run; times in seconds of model time."""

    def __init__(self, machine: Machine, costs: dict[str, Cost], streams: int, seed: int = 0) -> None:
        self._costs = costs
        self._machine = machine
        self._free_cores = machine.cores
        self._ready: deque[_Process] = deque()
        self._events: list[tuple[float, int, Callable[[], None]]] = []
        self._order = itertools.count()
        self.now = 0.0
        self._ingresses = [_Process() for _ in range(machine.ingresses)]
        self._redis = [_Process() for _ in range(machine.redis)]
        self._workers = [_Process() for _ in range(machine.workers)]
        self._benches = [_Process() for _ in range(machine.benches)]
        self._pending: dict[tuple[int, int], list[tuple[int, float]]] = {}
        self._commit_due: set[tuple[int, int]] = set()
        self._last_commit: dict[tuple[int, int], float] = {}
        self._unread: dict[tuple[int, int], list[tuple[int, float]]] = {}
        self._round_due: set[tuple[int, int]] = set()
        self._last_round: dict[tuple[int, int], float] = {}
        self.latencies: list[tuple[float, float]] = []
        self.busy_s: dict[str, float] = dict.fromkeys(costs, 0.0)
        clock = random.Random(seed)
        for stream in range(streams):
            self._at(clock.random() * CHUNK_S, lambda stream=stream: self._speak(stream))  # type: ignore[misc]

    def run(self, duration_s: float) -> None:
        """Run for some seconds of model time."""
        while self._events and self._events[0][0] < duration_s:
            self.now, _, happen = heapq.heappop(self._events)
            happen()

    # Cores

    def _at(self, when: float, happen: Callable[[], None]) -> None:
        heapq.heappush(self._events, (when, next(self._order), happen))

    def _do(self, process: _Process, role: str, cost_s: float, then: Callable[[], None]) -> None:
        self.busy_s[role] += cost_s
        process.tasks.append((cost_s, then))
        if not process.queued:
            process.queued = True
            self._ready.append(process)
            self._dispatch()

    def _dispatch(self) -> None:
        while self._free_cores and self._ready:
            process = self._ready.popleft()
            self._free_cores -= 1
            cost_s, then = process.tasks.popleft()
            self._at(self.now + cost_s, lambda p=process, t=then: self._finish(p, t))  # type: ignore[misc]

    def _finish(self, process: _Process, then: Callable[[], None]) -> None:
        self._free_cores += 1
        if process.tasks:
            self._ready.append(process)
        else:
            process.queued = False
        then()
        self._dispatch()

    # The path of a chunk

    def _speak(self, stream: int) -> None:
        self._at(self.now + CHUNK_S, lambda: self._speak(stream))
        bench = self._benches[stream % len(self._benches)]
        cost = self._costs["bench"]
        self._do(bench, "bench", 0.5 * cost.chunk_s, lambda: self._receive(stream, self.now))

    def _receive(self, stream: int, sent_s: float) -> None:
        index = stream % len(self._ingresses)
        lane = (index, stream % len(self._redis))

        def received() -> None:
            self._pending.setdefault(lane, []).append((stream, sent_s))
            self._due(lane, self._commit_due, self._last_commit, self._machine.commit_every_s, self._commit)

        cost_s = INGRESS_IN * self._costs["ingress"].chunk_s
        self._do(self._ingresses[index], "ingress", cost_s, received)

    def _due(
        self,
        lane: tuple[int, int],
        due: set[tuple[int, int]],
        last: dict[tuple[int, int], float],
        every_s: float,
        act: Callable[[tuple[int, int]], None],
    ) -> None:
        if lane not in due:
            due.add(lane)
            self._at(max(self.now, last.get(lane, 0.0) + every_s), lambda: act(lane))

    def _commit(self, lane: tuple[int, int]) -> None:
        self._last_commit[lane] = self.now
        self._commit_due.discard(lane)
        chunks = self._pending.pop(lane, [])
        redis = self._costs["redis"]
        append_s = redis.batch_s + REDIS_APPEND * redis.chunk_s * len(chunks)
        self._do(
            self._ingresses[lane[0]],
            "ingress",
            self._costs["ingress"].batch_s,
            lambda: self._do(self._redis[lane[1]], "redis", append_s, lambda: self._notify(lane[1], chunks)),
        )

    def _notify(self, server: int, chunks: list[tuple[int, float]]) -> None:
        for chunk in chunks:
            reader = (chunk[0] % len(self._workers), server)
            self._unread.setdefault(reader, []).append(chunk)
            self._due(reader, self._round_due, self._last_round, self._machine.round_every_s, self._round)

    def _round(self, reader: tuple[int, int]) -> None:
        self._last_round[reader] = self.now
        self._round_due.discard(reader)
        chunks = self._unread.pop(reader, [])
        redis, worker = self._costs["redis"], self._costs["worker"]
        read_s = 2 * redis.batch_s + REDIS_READ * redis.chunk_s * len(chunks)
        decode_s = worker.batch_s + worker.chunk_s * len(chunks)
        write_s = redis.batch_s + (1 - REDIS_APPEND - REDIS_READ) * redis.chunk_s * len(chunks)
        server = self._redis[reader[1]]

        def decode() -> None:
            self._do(self._workers[reader[0]], "worker", decode_s, write)

        def write() -> None:
            self._do(server, "redis", write_s, lambda: self._publish(chunks))

        self._do(server, "redis", read_s, decode)

    def _publish(self, chunks: list[tuple[int, float]]) -> None:
        by_ingress: dict[int, list[tuple[int, float]]] = {}
        for chunk in chunks:
            by_ingress.setdefault(chunk[0] % len(self._ingresses), []).append(chunk)
        cost = self._costs["ingress"]
        for index, mine in by_ingress.items():
            out_s = cost.batch_s + (1 - INGRESS_IN) * cost.chunk_s * len(mine)
            self._do(self._ingresses[index], "ingress", out_s, lambda mine=mine: self._deliver(mine))  # type: ignore[misc]

    def _deliver(self, chunks: list[tuple[int, float]]) -> None:
        cost_s = 0.5 * self._costs["bench"].chunk_s
        for stream, sent_s in chunks:
            self._do(
                self._benches[stream % len(self._benches)],
                "bench",
                cost_s,
                lambda sent_s=sent_s: self.latencies.append((self.now, self.now - sent_s)),  # type: ignore[misc]
            )


@dataclass(frozen=True, slots=True)
class Prediction:
    """p50_ms, p99_ms: of the latency. busy: cores that each role uses. stable: the backlog does not grow."""

    p50_ms: float
    p99_ms: float
    busy: dict[str, float]
    stable: bool


def predict(machine: Machine, costs: dict[str, Cost], streams: int, duration_s: float = 6.0) -> Prediction:
    """Simulate, leaving the first second out."""
    simulation = Simulation(machine, costs, streams)
    simulation.run(duration_s)
    late = sorted(latency for at, latency in simulation.latencies if at > 1.0)
    expected = streams * (duration_s - 1.0) / CHUNK_S
    busy = {role: busy_s / duration_s for role, busy_s in simulation.busy_s.items()}
    if not late:
        return Prediction(float("inf"), float("inf"), busy, stable=False)
    p50, p99 = (1000 * late[int(share * len(late))] for share in (0.5, 0.99))
    return Prediction(p50, p99, busy, len(late) > 0.98 * expected and p99 < 1000)


def main() -> None:
    parser = command_line(__file__, __doc__)
    parser.add_argument("bench", type=Path, help="JSON of a bench at several numbers of streams, null engine")
    parser.add_argument("--cores", type=int, default=0, help="cores of the machine (default: the bench's)")
    parser.add_argument("--streams", help="numbers of streams to predict, instead of the check")
    parser.add_argument("--ingresses", type=int, default=1, help="ingress processes")
    parser.add_argument("--redis", type=int, default=1, help="Redis servers")
    parser.add_argument("--workers", type=int, default=1, help="worker processes")
    parser.add_argument("--benches", type=int, default=1, help="processes that make the load")
    parser.add_argument(
        "--commit-ms", type=float, default=5.0, help="milliseconds between two commits in the run"
    )
    parser.add_argument(
        "--round-ms",
        type=float,
        default=6.0,
        help="milliseconds between two of a worker's rounds in the run",
    )
    given = parser.parse_args()
    report = json.loads(given.bench.read_text())
    cores = given.cores or report["surroundings"]["cores"]
    machine = Machine(
        cores,
        given.ingresses,
        given.redis,
        given.workers,
        given.benches,
        given.commit_ms / 1000,
        given.round_ms / 1000,
    )
    costs = fit(report["trials"], machine)
    print("| part | us a batch | us a chunk | us a stream and second |\n|---|---|---|---|")
    for role, cost in costs.items():
        batch_us, chunk_us = 1e6 * cost.batch_s, 1e6 * cost.chunk_s
        print(f"| {role} | {batch_us:.0f} | {chunk_us:.1f} | {chunk_us / CHUNK_S:.0f} |")
    if given.streams is None:
        print(f"\n{cores} cores\n\n| streams | p50 ms: model | measured | p99 ms: model | measured |")
        print("|---|---|---|---|---|")
        for trial in report["trials"]:
            found = predict(machine, costs, trial["streams"])
            print(
                f"| {trial['streams']} | {found.p50_ms:.1f} | {trial['latency']['p50_ms']:.1f} "
                f"| {found.p99_ms:.1f} | {trial['latency']['p99_ms']:.1f} |"
            )
        return
    print(f"\n{machine}\n\n| streams | p50 ms | p99 ms | cores in use | stable |\n|---|---|---|---|---|")
    for streams in map(int, given.streams.split(",")):
        found = predict(machine, costs, streams)
        used = ", ".join(f"{role} {busy:.2f}" for role, busy in found.busy.items())
        stable = "yes" if found.stable else "no"
        print(f"| {streams} | {found.p50_ms:.1f} | {found.p99_ms:.1f} | {used} | {stable} |")


if __name__ == "__main__":
    main()
