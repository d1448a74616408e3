"""Which shards a worker asks for new streams, and for how many."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from common.entries import AssignmentEntry, StreamId
from common.redis.clients import RedisServers
from gpu_worker.ownership.claimer import Claimer
from gpu_worker.pipeline.flow import StreamTable


class _Claims:
    """Stands for shards of which each has one stream more at any time, and for their opening."""

    def __init__(self, table: StreamTable) -> None:
        self._table = table
        self.asked: list[tuple[list[int], int]] = []

    def wait(
        self, _client: object, shards: Sequence[int], count: int, _block_ms: int | None
    ) -> list[AssignmentEntry]:
        self.asked.append((list(shards[:count]), count))
        return [AssignmentEntry(StreamId(shard), b"1-0") for shard in shards[:count]]

    def open(self, entries: Sequence[AssignmentEntry], reserved: int) -> None:
        assert len(entries) <= reserved
        self._table.unreserve(reserved)  # they have ended


def test_a_worker_with_few_slots_asks_one_shard_after_the_other() -> None:
    servers: Any = RedisServers.parse(("unix:///nowhere/redis.sock",), 5)
    table = StreamTable(2)
    claims: Any = _Claims(table)
    none: Any = None
    claimer = Claimer(servers=servers, server=0, redis=none, claims=claims, table=table, owner=claims)
    for _ in range(5):
        claimer._claim()
    assert claims.asked == [([2, 3], 2), ([4, 0], 2), ([1, 2], 2), ([3, 4], 2), ([0, 1], 2)]
    assert table.num_free == 2
