"""The status line, computed from Redis keys alone, so that any ingress answers for the whole cluster.

docs/status.md defines every field. Depths of queues are read from the streams themselves, so they are right
even while a worker hangs; timings, rates, counts and the engine's gauges come from the hashes of workers
whose lease holds.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Any, Final

import orjson

from common.entries import IngressId, WorkerId, decode_assignment
from common.errors import EntryError, RedisUnavailable
from common.monitoring.families import STAGES
from common.redis.clients import REDIS_ERROR, AsyncRedis
from common.redis.connect import Argument, pack
from common.redis.keys import Keys
from common.redis.scripts import status as scripts

# Streams whose groups one pipeline reads: bounds the reply.
_BATCH: Final = 500
# How old a status line may be. Reading 5,000 streams takes Redis some 75 ms, so that one reading every two
# seconds is 4 % of its core, however many requests come.
SHARED_FOR_MS: Final = 2000
# A reading is done by then, or the ingress that made it has died.
_LOOK_TIME_MS: Final = 5000
_ASK_AGAIN_S: Final = 0.05


@dataclass(frozen=True, slots=True)
class StageReport:
    """One stage of a worker's engine: calls since start; calls, units and busy seconds of the window."""

    calls: int
    window_calls: int
    window_units: int
    window_busy_s: float


@dataclass(frozen=True, slots=True)
class WorkerReport:
    """The status of a worker in its hash.

    capacity: streams it can own. owned: streams it owns. started_ms: Unix time.
    window_s: length of the window that the figures of the window cover.
    stages: by name, in the order of STAGES.
    ready_encode: streams with a whole chunk (or a last remainder) in the engine, waiting for a step.
    ready_decode: streams with encoded frames that wait for the decoder.
    """

    capacity: int
    owned: int
    draining: bool
    started_ms: int
    window_s: float
    stages: Mapping[str, StageReport]
    window_tokens: int
    in_flight: int
    ready_encode: int
    ready_decode: int
    turn_detection_depth: int
    turn_detection_streams: int

    def fields(self) -> dict[str, str | int | float]:
        """Return the fields of the hash."""
        fields: dict[str, str | int | float] = {
            "capacity": self.capacity,
            "owned": self.owned,
            "draining": int(self.draining),
            "started_ms": self.started_ms,
            "window_s": self.window_s,
            "window_tokens": self.window_tokens,
            "in_flight": self.in_flight,
            "ready_encode": self.ready_encode,
            "ready_decode": self.ready_decode,
            "turn_detection_depth": self.turn_detection_depth,
            "turn_detection_streams": self.turn_detection_streams,
        }
        for name in STAGES:
            stage = self.stages[name]
            fields[f"{name}_calls"] = stage.calls
            fields[f"{name}_window_calls"] = stage.window_calls
            fields[f"{name}_window_units"] = stage.window_units
            fields[f"{name}_window_busy_s"] = stage.window_busy_s
        return fields


def decode_worker_report(fields: Mapping[bytes, bytes]) -> WorkerReport | None:
    """Read a worker's hash; return None if it has expired (or is another version's)."""
    try:
        # Fields that are no numbers describe the backend; the status line does not have them.
        number = {name.decode(): _number(value) for name, value in fields.items()}
        stages = {
            name: StageReport(
                int(number[f"{name}_calls"]),
                int(number[f"{name}_window_calls"]),
                int(number[f"{name}_window_units"]),
                number[f"{name}_window_busy_s"],
            )
            for name in STAGES
        }
        return WorkerReport(
            capacity=int(number["capacity"]),
            owned=int(number["owned"]),
            draining=number["draining"] != 0,
            started_ms=int(number["started_ms"]),
            window_s=number["window_s"],
            stages=stages,
            window_tokens=int(number["window_tokens"]),
            in_flight=int(number["in_flight"]),
            ready_encode=int(number["ready_encode"]),
            ready_decode=int(number["ready_decode"]),
            turn_detection_depth=int(number["turn_detection_depth"]),
            turn_detection_streams=int(number["turn_detection_streams"]),
        )
    except (KeyError, ValueError):
        return None


def _number(value: bytes) -> float:
    try:
        return float(value)
    except ValueError:
        return float("nan")


@dataclass(frozen=True, slots=True)
class _Backlog:
    """Sums over the streams of the cluster: entries and streams not delivered, and not acknowledged."""

    raw_depth: int
    raw_streams: int
    encoded_depth: int
    encoded_streams: int
    owned: int
    waiting: int


async def shared_status(redis: AsyncRedis, keys: Keys) -> bytes:
    """Return the status line of the cluster, as JSON, at most `SHARED_FOR_MS` old. Raises RedisUnavailable.

    It reads every stream, so the whole cluster shares each line: the first request computes it, and Redis
    keeps it for the requests to all ingresses.
    """
    while True:
        line, left_ms = await _shared_line(redis, keys)
        if line is not None:
            return line
        if left_ms <= 0:
            break
        # Another ingress computes it; if that one dies, the next begins when its time is over.
        await asyncio.sleep(min(left_ms / 1000, _ASK_AGAIN_S))
    line = orjson.dumps(await read_status(redis, keys))
    await _execute(redis, "SET", keys.status_line, line, "PX", SHARED_FOR_MS)
    return line


async def _shared_line(redis: AsyncRedis, keys: Keys) -> tuple[bytes | None, int]:
    """Return the kept line; or None, and how long another ingress's turn lasts: 0 for this one's turn."""
    line, left_ms = await _execute(redis, *scripts.share(keys, look_ms=_LOOK_TIME_MS))
    return line, int(left_ms)


async def read_status(redis: AsyncRedis, keys: Keys) -> dict[str, Any]:
    """Compute the status line of the cluster. Raises RedisUnavailable."""
    seconds, microseconds = await _execute(redis, "TIME")
    now_ms = int(seconds) * 1000 + int(microseconds) // 1000
    connected, worker_names, ingress_names = await _replies(
        redis,
        0,
        [
            ("ZCOUNT", keys.admissions, f"({now_ms}", "+inf"),
            ("ZRANGEBYSCORE", keys.workers, f"({now_ms}", "+inf"),
            ("ZRANGEBYSCORE", keys.ingresses, f"({now_ms}", "+inf"),
        ],
    )
    workers = [WorkerId(name.decode()) for name in worker_names]
    hashes = await _replies(redis, 0, [("HGETALL", keys.worker(worker)) for worker in workers])
    reports = [
        report
        for flat in hashes
        if (report := decode_worker_report(dict(zip(flat[::2], flat[1::2], strict=True)))) is not None
    ]
    started = [report.started_ms for report in reports]
    starts = await _replies(
        redis, 0, [("HGET", keys.ingress(IngressId(name.decode())), "started_ms") for name in ingress_names]
    )
    started += [int(value) for value in starts if value is not None]

    backlogs = []
    pre_encode = 0
    for shard in range(keys.shards):
        server = redis.servers.server_of_shard(shard)
        backlogs.append(await _backlog(redis, server, keys, shard))
        pre_encode += sum(
            await _replies(redis, server, [("ZCARD", keys.ready(shard, worker)) for worker in workers])
        )
    return assemble(
        connected_streams=int(connected),
        reports=reports,
        backlog=_Backlog(
            raw_depth=sum(one.raw_depth for one in backlogs),
            raw_streams=sum(one.raw_streams for one in backlogs),
            encoded_depth=sum(one.encoded_depth for one in backlogs),
            encoded_streams=sum(one.encoded_streams for one in backlogs),
            owned=sum(one.owned for one in backlogs),
            waiting=sum(one.waiting for one in backlogs),
        ),
        ready_pre_encode=pre_encode,
        uptime_s=max(0.0, (now_ms - min(started)) / 1000) if started else 0.0,
    )


async def _backlog(redis: AsyncRedis, server: int, keys: Keys, shard: int) -> _Backlog:
    assignments = keys.assignments(shard)
    # In one round trip: a stream that is claimed in between would be owned, and not among all.
    entries, owned = await _replies(
        redis, server, [("XRANGE", assignments, "-", "+"), scripts.num_owned(assignments)]
    )
    streams = []
    for entry_id, fields in entries:
        with suppress(EntryError):  # workers leave it alone, too, and log it
            streams.append(decode_assignment(entry_id, fields).stream)
    raw_depth = raw_streams = encoded_depth = encoded_streams = 0
    for at in range(0, len(streams), _BATCH):
        audio = [keys.stream(stream).audio for stream in streams[at : at + _BATCH]]
        for undelivered, unacknowledged in await _replies(
            redis, server, [scripts.backlog(key) for key in audio]
        ):
            raw_depth += undelivered
            raw_streams += undelivered > 0
            encoded_depth += unacknowledged
            encoded_streams += unacknowledged > 0
    return _Backlog(
        raw_depth, raw_streams, encoded_depth, encoded_streams, owned, max(0, len(entries) - owned)
    )


async def _replies(redis: AsyncRedis, server: int, commands: Sequence[tuple[Argument, ...]]) -> list[Any]:
    """Run commands together. Raises RedisUnavailable, also for the first refusal."""
    if not commands:
        return []
    try:
        replies = await redis.pipelined(server).send([pack(*command) for command in commands])
    except (REDIS_ERROR, OSError) as error:
        raise RedisUnavailable(str(error)) from error
    for reply in replies:
        if isinstance(reply, Exception):
            raise RedisUnavailable(str(reply)) from reply
    return replies


async def _execute(redis: AsyncRedis, *command: Argument) -> Any:
    try:
        return await redis.execute(0, *command)
    except (REDIS_ERROR, OSError) as error:
        raise RedisUnavailable(str(error)) from error


def assemble(
    *,
    connected_streams: int,
    reports: Sequence[WorkerReport],
    backlog: _Backlog,
    ready_pre_encode: int,
    uptime_s: float,
) -> dict[str, Any]:
    """Return the status line, with exactly the keys that docs/status.md documents."""
    return {
        "type": "status",
        "connected_streams": connected_streams,
        "queues": {
            "raw_depth": backlog.raw_depth,
            "encoded_depth": backlog.encoded_depth,
            "turn_detection_depth": sum(report.turn_detection_depth for report in reports),
            "raw_streams": backlog.raw_streams,
            "encoded_streams": backlog.encoded_streams,
            "turn_detection_streams": sum(report.turn_detection_streams for report in reports),
        },
        "ready_queues": {
            "pre_encode": ready_pre_encode,
            "encode": sum(report.ready_encode for report in reports),
            "decode": sum(report.ready_decode for report in reports),
        },
        "in_flight": sum(report.in_flight for report in reports),
        "scheduler": {"active": backlog.owned, "waiting": backlog.waiting},
        "timings_ms": {f"{stage}_avg": _mean_ms(reports, stage) for stage in STAGES},
        "rates_per_sec": {
            "turn_detection_sequences": _rate(reports, "turn_detection"),
            "pre_encode_chunks": _rate(reports, "pre_encode"),
            "encode_frames": _rate(reports, "encode"),
            "decode_frames": _rate(reports, "decode"),
            "decode_tokens": round(
                sum(
                    (report.window_tokens / report.window_s for report in reports if report.window_s > 0), 0.0
                ),
                3,
            ),
        },
        "counts": {
            f"{stage}_calls": sum(report.stages[stage].calls for report in reports) for stage in STAGES
        },
        "uptime_sec": round(uptime_s, 3),
    }


def _mean_ms(reports: Sequence[WorkerReport], stage: str) -> float:
    """Return the mean duration of a call in the windows of all workers, each weighted by its calls."""
    calls = sum(report.stages[stage].window_calls for report in reports)
    busy_s = sum(report.stages[stage].window_busy_s for report in reports)
    return round(busy_s / calls * 1000, 3) if calls else 0.0


def _rate(reports: Sequence[WorkerReport], stage: str) -> float:
    return round(
        sum(
            (
                report.stages[stage].window_units / report.window_s
                for report in reports
                if report.window_s > 0
            ),
            0.0,
        ),
        3,
    )


def unix_time_ms() -> int:
    """Return the present Unix time, in ms."""
    return time.time_ns() // 1_000_000
