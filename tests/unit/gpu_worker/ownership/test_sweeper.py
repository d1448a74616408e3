"""When a worker ends streams whose ingress is gone, and what its takeovers take from others."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from typing import Any

import pytest
import redis.exceptions

from common.entries import AssignmentEntry, IngressId, StreamId, WorkerId
from common.options import StreamOptions
from common.redis.clients import RedisServers
from common.redis.keys import Keys
from common.streams.assignments import Checkpoint, StreamRecord
from common.streams.claims import OwnedStream
from gpu_worker.ownership.sweeper import Sweeper
from gpu_worker.pipeline.flow import StreamFlow, StreamTable

GRACE_S = 30
DEAD, DEAD_TOO, LIVE = IngressId("dead"), IngressId("dead-too"), IngressId("live")


class _Stub:
    """Stands for Redis, where one ingress lives, and for the intake of all streams."""

    servers = RedisServers.parse(("redis://example",))

    def __init__(self) -> None:
        self.ended: list[StreamFlow] = []

    def missing_ingresses(self, ingresses: Iterable[IngressId]) -> set[IngressId]:
        return set(ingresses) - {LIVE}

    def intake_of(self, _owned: OwnedStream) -> _Stub:
        return self

    def finish(self, flow: StreamFlow) -> None:
        self.ended.append(flow)


def _flow(stream: int, ingress: IngressId) -> StreamFlow:
    record = StreamRecord(
        *(StreamId(stream), ingress, StreamOptions(), 16_000, "", 0, 60_000, GRACE_S * 1000, None, 2),
        Checkpoint(),
        finished=False,
    )
    return StreamFlow(OwnedStream(Keys().stream(StreamId(stream)), b"1-0", record, 0))


def test_a_stream_has_its_whole_grace_though_its_ingress_is_long_gone() -> None:
    """A replay passes by all ingresses that the stream has had, and the worker may know them from others."""
    stub: Any = _Stub()
    none: Any = None
    sweeper = Sweeper(
        redis=stub,
        lease=stub,
        worker=none,
        claims=none,
        table=StreamTable(3),
        owner=stub,
        quarantine=none,
        on_full=none,
        period_s=1.0,
    )
    orphan, replayed, moving = _flow(1, DEAD), _flow(2, LIVE), _flow(3, DEAD)
    for now in range(GRACE_S + 1):
        replayed.ingress = DEAD if now >= GRACE_S - 1 else LIVE
        moving.ingress = DEAD if now < GRACE_S // 2 else DEAD_TOO
        assert stub.ended == []
        sweeper._finish_orphans([orphan, replayed, moving], now)
    assert stub.ended == [orphan]
    replayed.ingress = LIVE
    for now in range(GRACE_S + 1, GRACE_S + GRACE_S // 2 + 1):
        sweeper._finish_orphans([replayed, moving], now)
    assert stub.ended == [orphan, moving]


class _Claims:
    """The assignments on two servers: the first is away, and the second has some of a dead worker."""

    def __init__(self, table: StreamTable) -> None:
        self._table = table
        self.free_meanwhile: list[int] = []

    def owners(self, shards: Sequence[int]) -> Counter[WorkerId]:
        self.free_meanwhile.append(self._table.num_free)
        if 0 in shards:
            raise redis.exceptions.TimeoutError
        return Counter({WorkerId("w-dead"): 3, WorkerId("w-live"): 9})

    def pending_of(self, worker: WorkerId, count: int, shards: Sequence[int]) -> list[AssignmentEntry]:
        assert (worker, list(shards)) == ("w-dead", [1])
        self.free_meanwhile.append(self._table.num_free)
        return [AssignmentEntry(StreamId(number), b"1-%d" % number) for number in (1, 3, 5)][:count]


class _Owner:
    def __init__(self) -> None:
        self.opened: list[tuple[int, int]] = []

    def open(self, entries: Sequence[AssignmentEntry], reserved: int) -> None:
        self.opened.append((len(entries), reserved))


def test_a_takeover_keeps_no_slot_while_it_waits_for_a_server_that_is_away() -> None:
    """New streams on the other servers need it; and it reserves no more than there is to take."""
    table, owner = StreamTable(8), _Owner()
    claims = _Claims(table)
    stub: Any = _Stub()
    stub.servers = RedisServers.parse(("redis://away", "redis://there"), 2)
    parts: Any = (claims, owner)
    sweeper = Sweeper(
        redis=stub,
        lease=stub,
        worker=WorkerId("w-own"),
        claims=parts[0],
        table=table,
        owner=parts[1],
        quarantine=stub,
        on_full=lambda: None,
        period_s=1.0,
    )
    with pytest.raises(redis.exceptions.TimeoutError):
        sweeper._take(WorkerId("w-dead"), 0)
    assert (claims.free_meanwhile, table.num_free) == ([8], 8)
    sweeper._take(WorkerId("w-dead"), 1)
    assert claims.free_meanwhile == [8, 8, 5]
    assert owner.opened == [(3, 3)]
