"""The figures of a trial, and the check of its service level."""

from __future__ import annotations

from array import array
from collections.abc import Iterable
from dataclasses import dataclass

LATE_SHARE_ALLOWED = 0.001
FINAL_P95_ALLOWED_S = 1.0
BACKLOG_ALLOWED_S = 3.0


@dataclass(frozen=True, slots=True)
class Percentiles:
    """Nearest-rank percentiles of one quantity, in milliseconds."""

    count: int
    p50_ms: float
    p90_ms: float
    p95_ms: float
    p99_ms: float
    p999_ms: float
    max_ms: float

    @classmethod
    def of(cls, seconds: Iterable[float]) -> Percentiles:
        """Return the percentiles of times in seconds; all zero when there are none."""
        ordered = sorted(seconds)
        count = len(ordered)
        if not count:
            return cls(0, 0.0, 0.0, 0.0, 0.0, 0.0, 0.0)

        def rank(share: float) -> float:
            return round(1000 * ordered[min(count - 1, int(share * count))], 3)

        return cls(count, rank(0.5), rank(0.9), rank(0.95), rank(0.99), rank(0.999), rank(1.0))


@dataclass(frozen=True, slots=True)
class PartUsage:
    """One part of the system over the measured window.

    Attributes:
        role: ``ingress``, ``worker``, ``redis``, ``serve`` or ``bench``.
        processes: number of processes in the role.
        cpu_cores: mean CPU in use, in cores.
        cpu_us_per_stream_second: user + system microseconds per second of audio of a stream.
        resident_bytes: resident memory at the end of the window.
        resident_growth_per_stream: growth in bytes since before the first stream, per stream.
    """

    role: str
    processes: int
    cpu_cores: float
    cpu_us_per_stream_second: float
    resident_bytes: int
    resident_growth_per_stream: int


@dataclass(frozen=True, slots=True)
class RedisUsage:
    """Redis over the measured window, all servers together.

    Attributes:
        commands: calls a second and microseconds a call by command name, as the server counts them.
        used_memory_bytes: memory in use at the end of the window; ``..._growth_per_stream``: see `PartUsage`.
    """

    commands_per_s: float
    network_in_bytes_per_s: float
    network_out_bytes_per_s: float
    used_memory_bytes: int
    used_memory_growth_per_stream: int
    commands: dict[str, tuple[float, float]]


@dataclass(frozen=True, slots=True)
class TrialFigures:
    """The results of one trial.

    ``latency`` counts results between the end of the ramp and the first stream's end, when
    all streams are live; ``latency_all``, ``late_chunks`` and the verdict count every result.
    """

    streams: int
    message_ms: int
    chunk_ms: int
    duration_s: float
    window_s: float
    targets: tuple[str, ...]
    backend: str
    messages_sent: int
    results: int
    streams_finished: int
    streams_expected: int
    latency: Percentiles
    latency_all: Percentiles
    final: Percentiles
    late_chunks: int
    timed_chunks: int
    errors: dict[str, int]
    generator_lag_max_ms: float
    parts: tuple[PartUsage, ...]
    redis: RedisUsage | None
    failures: tuple[str, ...]

    @property
    def passed(self) -> bool:
        """Whether the trial met the service level."""
        return not self.failures


def verdict(
    *,
    chunk_ms: int,
    latencies: array[float],
    finals: Percentiles,
    late: int,
    errors: dict[str, int],
    finished: int,
    expected: int,
    sent: int,
    lagging: int,
) -> tuple[str, ...]:
    """Return the reasons why a trial misses the service level; empty if it passes.

    At most 0.1 % of timed chunks late (result later than one chunk after the last sample was
    sent), p95 of the final less a chunk at most 1 s, no result more than 3 s behind, every
    stream finished without error; and a generator that wrote 99.9 % of its messages in time.
    """
    failures = []
    if latencies and late > LATE_SHARE_ALLOWED * len(latencies):
        failures.append(f"late chunks {100 * late / len(latencies):.2f} %")
    if finals.p95_ms - chunk_ms > 1000 * FINAL_P95_ALLOWED_S:
        failures.append(f"final p95 {finals.p95_ms:.0f} ms")
    if latencies and max(latencies) > BACKLOG_ALLOWED_S:
        failures.append(f"backlog {max(latencies):.1f} s")
    if errors:
        failures.append("errors " + ", ".join(f"{k} {v}" for k, v in sorted(errors.items())))
    if finished < expected:
        failures.append(f"{expected - finished} of {expected} streams without a final")
    if lagging > LATE_SHARE_ALLOWED * sent:
        failures.append(f"load generator late with {100 * lagging / sent:.2f} % of its messages")
    return tuple(failures)
