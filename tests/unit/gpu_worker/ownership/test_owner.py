"""How many streams a worker opens by one round trip."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pytest

from common.entries import AssignmentEntry, StreamId
from common.monitoring.metrics import WorkerMetrics
from common.redis.clients import RedisServers
from common.redis.keys import Keys
from common.streams.assignments import Checkpoint
from common.streams.claims import OwnedStream, Stored
from gpu_worker.ownership.owner import Owner
from gpu_worker.pipeline.flow import StreamFlow, StreamTable
from tests.stream_records import owned_stream

NUM_SERVERS = 2


class _Claims:
    """Stands for Redis, which has a snapshot of so many bytes of each stream."""

    def __init__(self, snapshot_bytes: int, lost_at: int = 1 << 30) -> None:
        self._snapshot = bytes(snapshot_bytes)
        self._lost_at = lost_at
        self.portions: list[list[StreamId]] = []

    def open(self, entries: Sequence[AssignmentEntry], _together: int) -> list[OwnedStream]:
        if entries[0].stream >= self._lost_at:
            raise ConnectionError
        self.portions.append([entry.stream for entry in entries])
        return [_owned(entry.stream) for entry in entries]

    def snapshots(self, streams: Sequence[OwnedStream]) -> list[Stored]:
        return [Stored(self._snapshot, "") for _ in streams]


class _Intake:
    """Stands for the intake of a server."""

    def __init__(self, table: StreamTable) -> None:
        self._table = table
        self.streams: list[StreamId] = []

    def take_in(self, flow: StreamFlow, _snapshot: bytes) -> None:
        self._table.add(flow)
        self.streams.append(flow.stream)


def _owned(stream: StreamId) -> OwnedStream:
    return owned_stream(stream, Keys(NUM_SERVERS), epoch=2, checkpoint=Checkpoint(samples_decoded=16_000))


def _owner(claims: _Claims, table: StreamTable) -> tuple[Owner, list[_Intake]]:
    intakes = [_Intake(table) for _ in range(NUM_SERVERS)]
    unused: Any = None
    servers = RedisServers.parse(tuple(f"unix:///nowhere/{one}.sock" for one in range(NUM_SERVERS)), 2)
    parts: Any = {"claims": claims, "intakes": intakes}
    return Owner(
        servers=servers,
        table=table,
        engine=unused,
        sink=unused,
        quarantine=unused,
        metrics=WorkerMetrics(),
        **parts,
    ), intakes


def _entries(count: int) -> list[AssignmentEntry]:
    return [AssignmentEntry(StreamId(number), b"%d-0" % number) for number in range(count)]


@pytest.mark.parametrize(
    ("snapshot_bytes", "most"),
    [
        (15_000, 64),
        (7_300_000, 4),
        (40_000_000, 1),
    ],  # without keys and values; of `large`; of nothing we know
)
def test_many_streams_are_opened_in_portions_whose_snapshots_fit_into_memory(
    snapshot_bytes: int, most: int
) -> None:
    table = StreamTable(400)
    claims = _Claims(snapshot_bytes)
    owner, intakes = _owner(claims, table)
    owner.open(_entries(300), table.reserve(400))
    assert [sorted(intake.streams) for intake in intakes] == [list(range(0, 300, 2)), list(range(1, 300, 2))]
    for server in range(NUM_SERVERS):
        sizes = [len(portion) for portion in claims.portions if portion[0] % 2 == server]
        assert sizes[0] == 8, "how large snapshots are is not known yet"
        assert max(sizes[1:]) == most
    assert table.num_free == 100


def test_what_a_server_does_not_answer_for_keeps_no_slot_and_holds_no_other_up() -> None:
    table = StreamTable(400)
    owner, intakes = _owner(_Claims(15_000, lost_at=100), table)
    with pytest.raises(ConnectionError):
        owner.open(_entries(300), table.reserve(400))
    opened = sum(len(intake.streams) for intake in intakes)
    assert 0 < opened < 300
    assert table.num_free == 400 - opened
