"""When a worker ends streams whose ingress is gone."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from common.entries import IngressId, StreamId
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
