"""The metrics of a process: plain numbers, so that counting costs the hot path next to nothing.

One thread or event loop writes a number; the thread that answers a scrape reads it. The dictionaries have
all of their keys from the start, so a reader never sees one change its size.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Sequence

from common.monitoring.families import GROUP, INGRESS, WORKER, Family


class Histogram:
    """Counts of observations by bucket, and their sum.

    bounds: upper bounds, ascending; a value that equals a bound belongs to its bucket. The last count is that
    of the values above all bounds.
    """

    __slots__ = ("bounds", "counts", "sum")

    def __init__(self, bounds: Sequence[float]) -> None:
        self.bounds = tuple(bounds)
        self.counts = [0] * (len(self.bounds) + 1)
        self.sum = 0.0

    def observe(self, value: float) -> None:
        """Count one value."""
        self.counts[bisect_left(self.bounds, value)] += 1
        self.sum += value

    def cumulative(self) -> list[int]:
        """Return how many values are not above each bound, and at last all values, for infinity."""
        total, sums = 0, []
        for count in self.counts:
            total += count
            sums.append(total)
        return sums


def _fill(metrics: object, families: Sequence[Family]) -> None:
    for family in families:
        value: object = 0
        if family.kind == "histogram":
            value = Histogram(family.buckets)
        elif family.label:
            value = dict.fromkeys(family.values, 0)
        setattr(metrics, family.attribute, value)


class IngressMetrics:
    """The metrics of one ingress; `common.monitoring.families.INGRESS` has the meaning of each."""

    connections: dict[str, int]
    streams: dict[str, int]
    draining: int
    admissions: dict[str, int]
    streams_ended: dict[str, int]
    errors: dict[str, int]
    audio_seconds: float
    received_bytes: dict[str, int]
    sent_bytes: dict[str, int]
    results: dict[str, int]
    results_merged: int
    result_latency_seconds: Histogram
    first_result_seconds: Histogram
    final_latency_seconds: Histogram
    claim_wait_seconds: Histogram
    stream_duration_seconds: Histogram
    resumes: dict[str, int]
    takeovers: int
    ping_timeouts: int
    slow_bodies: int
    pace_waits: int
    paused_connections: int
    send_buffer_bytes: int
    redis_commit_seconds: Histogram
    redis_pending_bytes: int
    redis_reconnects: int
    audio_restored_entries: int
    event_loop_lag_seconds: float
    connections_refused: dict[str, int]
    recordings: dict[str, int]
    recording_seconds: Histogram
    uploads: int
    decoders: int
    auth_failures: dict[str, int]
    refused_requests: dict[str, int]
    certificate_expiry_timestamp_seconds: float

    def __init__(self) -> None:
        _fill(self, INGRESS)


class WorkerMetrics:
    """The metrics of one worker; `common.monitoring.families.WORKER` has the meaning of each."""

    slots: int
    measured_streams: int
    streams: int
    ready_streams: int
    backlog_chunks: int
    lease_held: int
    draining: int
    step_seconds: Histogram
    step_streams: Histogram
    stage_calls: dict[str, int]
    stage_units: dict[str, int]
    stage_busy_seconds: dict[str, float]
    tokens: int
    audio_seconds: float
    audio_wait_seconds: Histogram
    late_chunks: int
    claims: dict[str, int]
    fenced_writes: int
    results_restored: int
    lease_lapses: int
    engine_busy_seconds: float
    snapshots: dict[str, int]
    snapshot_bytes: int
    redis_write_seconds: Histogram
    suspects: int
    poisoned: int
    smart_turn_verdicts: dict[str, int]
    cuda_memory_bytes: dict[str, int]

    def __init__(self) -> None:
        _fill(self, WORKER)


class GroupMetrics:
    """The metrics of a group of lanes; `common.monitoring.families.GROUP` has the meaning of each."""

    lanes: int
    lane_restarts: int
    step_rows: Histogram
    device_busy_seconds: float
    cuda_memory_bytes: dict[str, int]

    def __init__(self) -> None:
        _fill(self, GROUP)
