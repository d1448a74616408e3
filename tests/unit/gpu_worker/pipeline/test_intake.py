"""When the intake reads; what it reads is tested on real servers."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from common.entries import AudioEntry, StreamId, WorkerId
from common.monitoring.metrics import WorkerMetrics
from common.phrases import Phrase
from common.process.pace import Pace
from common.redis.clients import RedisServers
from common.redis.keys import Keys, StreamKeys
from common.streams.assignments import Checkpoint
from gpu_worker.pipeline.engine_events import Feed, Finalize, Open, ReplacePhrases
from gpu_worker.pipeline.flow import StreamFlow, StreamTable
from gpu_worker.pipeline.intake import MAX_BEHIND, MAX_ENTRIES, MAX_ENTRIES_BEHIND, AudioRead, Intake
from tests.stream_records import owned_stream


class _Clock:
    """Stands for the module `time`, and for a reader that has news at the given times."""

    def __init__(self, *news_at: float) -> None:
        self.now = 0.0
        self._news_at = list(news_at)
        self.rounds_at: list[float] = []

    def monotonic(self) -> float:
        return self.now

    def sleep(self, seconds: float) -> None:
        self.now += seconds

    def wait(self, _block_ms: int | None, _max_streams: int, _on_wait: object = None) -> list[StreamId]:
        self.now = max(self.now, self._news_at.pop(0))
        self.rounds_at.append(self.now)
        return []


def processor_used(monkeypatch: pytest.MonkeyPatch, clock: Any, share: float) -> None:
    """Have the process use so much of a processor."""

    class UsedPace(Pace):
        def __init__(self, longest_s: float, *, shortest_s: float) -> None:
            super().__init__(
                longest_s, clock.monotonic, lambda: share * clock.monotonic(), shortest_s=shortest_s
            )
            for _ in range(20):
                clock.now += 0.1
                self.begun()

    monkeypatch.setattr("gpu_worker.pipeline.intake.Pace", UsedPace)
    monkeypatch.setattr("gpu_worker.pipeline.intake.time", clock)


def _intake(table: StreamTable, put: Callable[..., None] = lambda *_: None) -> Intake:
    """Return an intake without a server; a test gives it its reader. put: takes what goes to the engine."""
    return Intake(
        servers=RedisServers.parse(("unix:///nowhere/redis.sock",)),
        server=0,
        keys=Keys(),
        worker=WorkerId("w"),
        table=table,
        put=put,
        metrics=WorkerMetrics(),
        on_lost=lambda _: None,
    )


def _owned(intake: Intake, table: StreamTable, stream: StreamId, *, epoch: int) -> StreamFlow:
    """Return the flow of a stream that the intake has taken in under this epoch."""
    flow = StreamFlow(owned_stream(stream, epoch=epoch))
    table.reserve(1)
    intake.take_in(flow, None)
    return flow


def _raw(entry: AudioEntry) -> tuple[bytes, list[bytes]]:
    """Return an entry as Redis returns it."""
    fields = [part if isinstance(part, bytes) else str(part).encode() for part in entry.fields()]
    return entry.entry_id, fields


@pytest.mark.parametrize(
    ("share", "news_at", "rounds_at"),
    [
        # one ingress, whose commits are 10 ms apart; then two
        (1.0, (100.010, 100.020, 100.030), [100.010, 100.020, 100.030]),
        (1.0, (100.010, 100.013, 100.020, 100.023), [100.010, 100.013, 100.020, 100.023]),
        # many: one may come early, then they keep their distance, which is a quarter for a worker at ease
        (1.0, (100.010, 100.011, 100.012, 100.013), [100.010, 100.011, 100.015, 100.020]),
        (0.0, (100.010, 100.0105, 100.011, 100.0115), [100.010, 100.0105, 100.01125, 100.0125]),
    ],
)
def test_rounds_follow_the_commits_of_few_ingresses_and_are_held_back_for_many(
    monkeypatch: pytest.MonkeyPatch, share: float, news_at: tuple[float, ...], rounds_at: list[float]
) -> None:
    clock: Any = _Clock(*news_at)
    processor_used(monkeypatch, clock, share)
    intake = _intake(StreamTable(1))
    monkeypatch.setattr(intake, "_reader", clock)
    clock.now = 100.0
    for _ in news_at:
        intake._round()
    assert clock.rounds_at == pytest.approx(rounds_at)


SAMPLES = 160


class _Log:
    """Stands for a reader of streams with so many entries each; all of them have been announced."""

    def __init__(self, entries: dict[StreamId, int]) -> None:
        self.left = dict(entries)
        self.taken = dict.fromkeys(entries, 0)
        self.announced = list(entries)
        self.reads: list[dict[StreamId, int]] = []
        self.waited: list[bool] = []

    def wait(self, block_ms: int | None, max_streams: int, _on_wait: object) -> list[StreamId]:
        self.waited.append(block_ms is not None)
        streams, self.announced = self.announced[:max_streams], self.announced[max_streams:]
        return streams

    def read(self, streams: list[tuple[StreamKeys, int]], max_entries: int) -> list[AudioRead]:
        read: dict[StreamId, int] = {}
        told: list[AudioRead] = []
        for keys, _ in streams:
            count = min(max_entries, self.left[keys.stream])
            if count:
                read[keys.stream] = count
                entries = range(self.taken[keys.stream], self.taken[keys.stream] + count)
                told.append((keys.audio, [self._entry(number) for number in entries]))
                self.left[keys.stream] -= count
                self.taken[keys.stream] += count
        self.reads.append(read)
        return told

    @staticmethod
    def _entry(number: int) -> tuple[bytes, list[bytes]]:
        entry = AudioEntry(b"1-%d" % (number + 1), number * SAMPLES, bytes(2 * SAMPLES))
        return _raw(entry)


def test_streams_that_are_behind_take_turns_behind_those_that_keep_up(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    table = StreamTable(1000)
    intake = _intake(table)
    taken_over = [StreamId(number) for number in range(1, 2 * MAX_BEHIND + 1)]
    live = StreamId(500)
    flows = {}
    for stream, epoch in (*((stream, 2) for stream in taken_over), (live, 1)):
        flows[stream] = _owned(intake, table, stream, epoch=epoch)
    log = _Log({**dict.fromkeys(taken_over, MAX_ENTRIES_BEHIND + 1), live: 2})
    monkeypatch.setattr(intake, "_reader", log)

    intake._round()
    assert log.reads.pop(0) == {live: 2}, "it keeps up, and does not wait for the others"
    assert log.reads.pop(0) == dict.fromkeys(taken_over[:MAX_BEHIND], MAX_ENTRIES_BEHIND)
    log.left[live] = 1
    log.announced = [live]
    intake._round()
    assert log.reads.pop(0) == {live: 1}
    assert log.reads.pop(0) == dict.fromkeys(taken_over[MAX_BEHIND:], MAX_ENTRIES_BEHIND)
    for _ in range(2):  # the rest of each, in the order in which they were read
        intake._round()
    assert [list(read) for read in log.reads] == [taken_over[:MAX_BEHIND], taken_over[MAX_BEHIND:]]
    assert all(flow.fed_samples == SAMPLES * log.taken[stream] for stream, flow in flows.items())
    assert log.waited == [True, False, False, False], "nobody waits for news while streams are behind"

    # Now they keep up, and are read as soon as they have news.
    log.reads.clear()
    log.left = dict.fromkeys(log.left, 1)
    log.announced = list(taken_over[:3])
    intake._round()
    assert log.reads == [dict.fromkeys(taken_over[:3], 1)]
    # What falls behind while it is live gets in line, too.
    log.left[live] = MAX_ENTRIES + 1
    log.announced = [live]
    log.reads.clear()
    intake._round()
    assert log.reads == [{live: MAX_ENTRIES}, {live: 1}]


def test_a_stream_of_which_the_engine_has_enough_is_read_when_it_has_less(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    table = StreamTable(1)
    intake = _intake(table)
    stream = StreamId(1)
    flow = _owned(intake, table, stream, epoch=2)
    log = _Log({stream: 1000})
    monkeypatch.setattr(intake, "_reader", log)
    for _ in range(40):
        intake._round()
    assert flow.held
    # At most one read more than the engine is to have.
    assert 0 <= flow.backlog_samples - table.max_backlog_samples < MAX_ENTRIES_BEHIND * SAMPLES
    flow.decoded_samples, flow.held = flow.fed_samples, False
    log.announced = [stream]
    log.reads.clear()
    intake._round()
    assert [read for read in log.reads if read] == [{stream: MAX_ENTRIES_BEHIND}]


class _Entries:
    """Stands for a reader that is given these entries of a stream by each read."""

    def __init__(self, stream: StreamId, *reads: list[AudioEntry]) -> None:
        self._stream = stream
        self._reads = list(reads)

    def wait(self, _block_ms: int | None, _max_streams: int, _on_wait: object) -> list[StreamId]:
        return [self._stream]

    def read(self, streams: list[tuple[StreamKeys, int]], _max_entries: int) -> list[AudioRead]:
        return [(keys.audio, [_raw(entry) for entry in self._reads.pop(0)]) for keys, _ in streams]


def test_a_finalize_that_is_delivered_again_is_asked_for_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """A Redis that has forgotten its last moments has forgotten, too, what it had delivered."""
    commands: list[object] = []
    table, stream = StreamTable(1), StreamId(1)
    intake = _intake(table, lambda *some: commands.extend(some))
    flow = _owned(intake, table, stream, epoch=1)
    audio = [AudioEntry(b"1-%d" % (2 * at + 1), at * SAMPLES, bytes(2 * SAMPLES)) for at in range(4)]
    ends = [AudioEntry(b"1-%d" % (2 * at + 2), (at + 1) * SAMPLES, b"", finalize=True) for at in range(3)]
    log = _Entries(
        stream,
        [audio[0], ends[0], audio[1], ends[1]],
        [ends[0], audio[1], ends[1], audio[2], ends[2]],
        [ends[2], audio[3]],
    )
    monkeypatch.setattr(intake, "_reader", log)
    for _ in range(3):
        intake._round()
    assert [command.entry_id for command in commands if isinstance(command, Finalize)] == [
        end.entry_id for end in ends
    ]
    assert [type(command) for command in commands] == [Open, *[Feed, Finalize] * 3, Feed]
    assert flow.fed_samples == 4 * SAMPLES
    # All that was delivered is acknowledged in the end; only what came first is done with its own result.
    delivered = ["1-1", "1-2", "1-3", "1-4", "1-2", "1-3", "1-4", "1-5", "1-6", "1-6", "1-7"]
    assert [entry.entry_id.decode() for entry in flow.undecoded] == delivered
    assert [at for at, entry in enumerate(flow.undecoded) if entry.finalizes] == [1, 3, 8]


def test_phrases_that_are_delivered_again_replace_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    """They would replace at the place that the stream has come to, and older ones those in force."""
    commands: list[object] = []
    table, stream = StreamTable(1), StreamId(1)
    intake = _intake(table, lambda *some: commands.extend(some))
    flow = _owned(intake, table, stream, epoch=1)
    audio = [AudioEntry(b"1-%d" % (2 * at + 1), at * SAMPLES, bytes(2 * SAMPLES)) for at in range(4)]
    lists = [(Phrase("one"),), (), (Phrase("three"),)]
    changes = [
        AudioEntry(b"1-%d" % (2 * at + 2), (at + 1) * SAMPLES, b"", phrases=phrases)
        for at, phrases in enumerate(lists)
    ]
    log = _Entries(
        stream,
        [audio[0], changes[0], audio[1], changes[1]],
        [changes[0], audio[1], changes[1], audio[2], changes[2]],
        [changes[2], audio[3]],
    )
    monkeypatch.setattr(intake, "_reader", log)
    for _ in range(3):
        intake._round()
    replaced = [
        (command.phrases, command.sample) for command in commands if isinstance(command, ReplacePhrases)
    ]
    assert replaced == [(phrases, (at + 1) * SAMPLES) for at, phrases in enumerate(lists)]
    assert flow.fed_samples == 4 * SAMPLES
    delivered = ["1-1", "1-2", "1-3", "1-4", "1-2", "1-3", "1-4", "1-5", "1-6", "1-6", "1-7"]
    assert [entry.entry_id.decode() for entry in flow.undecoded] == delivered


def test_phrases_of_a_replay_keep_their_place_before_its_audio(monkeypatch: pytest.MonkeyPatch) -> None:
    """A replay begins up to a second before the checkpoint: else they would replace those in force there."""
    commands: list[object] = []
    table, stream = StreamTable(1), StreamId(1)
    intake = _intake(table, lambda *some: commands.extend(some))
    checkpoint = Checkpoint(b"1-1", samples_decoded=18_120)
    flow = StreamFlow(owned_stream(stream, epoch=2, checkpoint=checkpoint))
    table.reserve(1)
    intake.take_in(flow, b"")
    lists = (Phrase("one"),), (Phrase("two"),)
    log = _Entries(
        stream,
        [
            AudioEntry(b"1-2", 4_000, bytes(2_000)),
            AudioEntry(b"1-3", 5_000, b"", phrases=lists[0]),
            AudioEntry(b"1-4", 5_000, bytes(2 * 20_000)),
            AudioEntry(b"1-5", 25_000, b"", phrases=lists[1]),
        ],
    )
    monkeypatch.setattr(intake, "_reader", log)
    intake._round()
    replaced = [
        (command.phrases, command.sample) for command in commands if isinstance(command, ReplacePhrases)
    ]
    assert replaced == [(lists[0], 5_000), (lists[1], 25_000)]
