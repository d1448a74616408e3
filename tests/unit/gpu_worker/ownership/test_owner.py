"""How many streams a worker opens by one round trip, and those that it cannot open."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import pytest

from common.entries import AssignmentEntry, StreamId
from common.errors import ErrorCode
from common.monitoring.metrics import WorkerMetrics
from common.redis.clients import RedisServers
from common.redis.keys import Keys
from common.streams.assignments import Checkpoint
from common.streams.claims import OwnedStream, Stored, Suspect
from gpu_worker.ownership.owner import Owner
from gpu_worker.pipeline.engine_events import Command, Drop, Event, Failed
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


def _owner(
    claims: _Claims, table: StreamTable, engine: Any = None, sink: Any = None
) -> tuple[Owner, list[_Intake]]:
    intakes = [_Intake(table) for _ in range(NUM_SERVERS)]
    unused: Any = None
    servers = RedisServers.parse(tuple(f"unix:///nowhere/{one}.sock" for one in range(NUM_SERVERS)), 2)
    parts: Any = {"claims": claims, "intakes": intakes}
    return Owner(
        servers=servers,
        table=table,
        engine=engine,
        sink=sink,
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


class _Commands:
    """Stands for the engine thread, or its sink."""

    def __init__(self) -> None:
        self.put_in: list[Command | Event] = []

    def put(self, *commands: Command | Event) -> None:
        self.put_in += commands


@pytest.mark.parametrize("poison", [False, True])
def test_a_stream_that_is_ended_at_its_opening_keeps_nothing_of_a_loss_that_was_not_noticed(
    monkeypatch: pytest.MonkeyPatch, poison: bool
) -> None:
    """Else the engine would have the former ownership for ever, in a slot that others need."""
    table, engine, sink = StreamTable(4), _Commands(), _Commands()
    claims = _Claims(0)
    owner, intakes = _owner(claims, table, engine, sink)
    monkeypatch.setattr(
        claims, "open", lambda entries, _: [replace(_owned(entries[0].stream), poison=poison)]
    )
    monkeypatch.setattr(claims, "snapshots", lambda _: [Stored(None, "")])
    old = StreamFlow(_owned(StreamId(0)))
    table.reserve(1)
    table.add(old)
    owner.open(_entries(1), table.reserve(1))
    assert engine.put_in == [Drop(old)]
    (failed,) = sink.put_in
    assert isinstance(failed, Failed)
    assert failed.error.code is (ErrorCode.POISON if poison else ErrorCode.STREAM_LOST)
    assert table.get(StreamId(0)) is failed.flow is not old
    assert (table.num_free, intakes[0].streams) == (3, [])
    owner.open(_entries(1), table.reserve(1))
    assert engine.put_in[1:] == [Drop(failed.flow)]


@pytest.mark.parametrize("runs", [True, False])
def test_a_suspect_that_nothing_can_run_is_ended_and_keeps_no_slot(
    monkeypatch: pytest.MonkeyPatch, runs: bool
) -> None:
    table, sink = StreamTable(4), _Commands()
    claims = _Claims(0)
    owner, _ = _owner(claims, table, _Commands(), sink)
    isolated: list[AssignmentEntry] = []
    monkeypatch.setattr(owner, "_quarantine", _Quarantine(isolated, runs))
    monkeypatch.setattr(
        claims,
        "open",
        lambda entries, together: [_owned(entries[0].stream) if together else Suspect(entries[0])],
    )
    owner.open(_entries(1), table.reserve(1))
    assert isolated == _entries(1)
    if runs:
        assert (sink.put_in, table.num_free) == ([], 4)
        return
    (failed,) = sink.put_in
    assert isinstance(failed, Failed)
    assert failed.error.code is ErrorCode.WORKER_FAILED
    assert table.num_free == 3
    table.remove(failed.flow)
    assert table.num_free == 4


class _Quarantine:
    """Stands for the processes of suspects."""

    def __init__(self, isolated: list[AssignmentEntry], runs: bool) -> None:
        self._isolated = isolated
        self._runs = runs

    def isolate(self, entry: AssignmentEntry) -> bool:
        self._isolated.append(entry)
        return self._runs
