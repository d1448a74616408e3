"""The latency of other streams' results while snapshots are written to Redis, whole or in pieces.

    python -m benchmarks.snapshot_latency --megabytes 7.3 --a-second 20 --seconds 10

An embedded server; one thread stores snapshots of one stream after the other at a steady rate, as a worker
does, while another times a short XADD every millisecond.  First nobody stores, then each snapshot goes as
one SET, then as `Claims.checkpoint_commands` has it.  The figures are of one run on one machine: compare them
with each other.
"""

from __future__ import annotations

import asyncio
import os
import sys
import threading
import time
from collections.abc import Callable

import numpy as np

from benchmarks.command_line import command_line
from common.entries import IngressId, StreamId, WorkerId
from common.options import StreamOptions
from common.redis.clients import AsyncRedis, RedisServers, SyncRedis, blocking_client
from common.redis.connect import pack
from common.redis.keys import Keys
from common.streams.assignments import Checkpoint, NewStream, StreamDirectory
from common.streams.claims import Claims, OwnedStream
from parakeet.serve.embedded_redis import EmbeddedRedis


async def _create(servers: RedisServers, keys: Keys) -> None:
    redis = AsyncRedis(servers)
    new = NewStream(StreamId(1), IngressId("i"), StreamOptions(), 16_000, "", 0, 3_600_000, 0)
    await StreamDirectory(redis, keys).create(new)
    await redis.close()


def _owned(redis: SyncRedis, keys: Keys) -> tuple[Claims, OwnedStream]:
    claims = Claims(redis, keys, WorkerId("w"))
    claims.prepare()
    blocking = blocking_client(redis.servers, 0, 100)
    (entry,) = claims.wait(blocking, [0], 1, 100)
    blocking.close()
    owned = claims.open([entry])[0]
    assert isinstance(owned, OwnedStream)
    return claims, owned


def measure(
    redis: SyncRedis, store: Callable[[], None] | None, a_second: float, seconds: float
) -> tuple[list[float], float]:
    """Milliseconds of each XADD, and of the mean store."""
    connection = redis.pipelined(0)
    command = pack(b"XADD", b"others", b"MAXLEN", b"~", 256, b"*", b"j", b"x" * 300)
    over, stores = threading.Event(), []

    def storing() -> None:
        next_at = time.perf_counter()
        while store is not None and not over.is_set():
            began = time.perf_counter()
            store()
            stores.append(time.perf_counter() - began)
            next_at = max(next_at + 1 / a_second, began)
            over.wait(max(0.0, next_at - time.perf_counter()))

    thread = threading.Thread(target=storing)
    thread.start()
    times, end = [], time.perf_counter() + seconds
    while (began := time.perf_counter()) < end:
        connection.call((command,))
        times.append(1000 * (time.perf_counter() - began))
        time.sleep(0.001)
    over.set()
    thread.join()
    return times, 1000 * float(np.mean(stores)) if stores else 0.0


def main() -> int:
    """Command line: a Markdown table."""
    parser = command_line(__file__, __doc__)
    parser.add_argument("--megabytes", type=float, default=7.3, help="size of a snapshot")
    parser.add_argument("--a-second", type=float, default=20, help="snapshots a second")
    parser.add_argument("--seconds", type=float, default=10, help="length of each part")
    given = parser.parse_args()
    data, keys = os.urandom(int(1e6 * given.megabytes)), Keys()
    with EmbeddedRedis(maxmemory_mb=2000) as server:
        servers = RedisServers.parse((server.url,))
        asyncio.run(_create(servers, keys))
        redis = SyncRedis(servers)
        claims, owned = _owned(redis, keys)
        connection = redis.pipelined(0)

        def whole() -> None:
            connection.call((pack(b"SET", b"snapshot", data),))

        def pieces() -> None:
            for command in claims.checkpoint_commands(owned, Checkpoint(), data):
                connection.call((pack(*command),))

        print("| snapshots | p50 of an XADD | p99 | p99.9 | most | a snapshot takes |")
        print("| --- | --- | --- | --- | --- | --- |")
        for name, store in (("none", None), ("one write each", whole), ("in pieces", pieces)):
            times, stored = measure(redis, store, given.a_second, given.seconds)
            cuts = " | ".join(f"{np.percentile(times, share):.2f} ms" for share in (50, 99, 99.9, 100))
            print(f"| {name} | {cuts} | {stored:.1f} ms |", flush=True)
        redis.close()
    return 0


if __name__ == "__main__":
    sys.exit(main())
