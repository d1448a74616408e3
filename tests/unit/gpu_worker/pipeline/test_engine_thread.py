"""The thread that owns the engine: order, faults of one stream, failure of the whole, hang."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace

import numpy as np
import pytest

from common.entries import StreamId
from common.errors import ErrorCode
from common.monitoring.metrics import WorkerMetrics
from common.options import StreamOptions
from common.phrases import Phrase, encode_phrases
from gpu_worker.engine.engine import SpeechEngine
from gpu_worker.engine.interface import (
    StreamOutput,
    StreamSnapshot,
)
from gpu_worker.engine.snapshot import Snapshot
from gpu_worker.lanes.link import GroupLost
from gpu_worker.pipeline.engine_events import (
    Decoded,
    Drop,
    Dropped,
    Event,
    Failed,
    Feed,
    Finalize,
    Finish,
    HandedOver,
    HandOver,
    Open,
    Opened,
    ReplacePhrases,
    SnapshotTaken,
)
from gpu_worker.pipeline.engine_thread import EngineThread
from gpu_worker.pipeline.flow import StreamFlow
from gpu_worker.steps.null import Letters, NullEngine, NullSteps
from tests.device.overlapping_steps import OverlappingSteps
from tests.stream_records import owned_stream
from tests.waiting import wait_until


def flow(number: int, epoch: int = 1) -> StreamFlow:
    return StreamFlow(owned_stream(number, epoch=epoch))


class Sink:
    def __init__(self) -> None:
        self.events: list[Event] = []
        self.busy = False
        self.busy_with: set[StreamId | None] = set()

    def put(self, event: Event) -> None:
        self.events.append(event)

    def takes_snapshot(self, stream: StreamId | None = None) -> bool:
        return not self.busy and stream not in self.busy_with

    def count(self, kind: type[Event]) -> int:
        return sum(isinstance(event, kind) for event in self.events)


class Running:
    """An engine thread, what it said, and why it failed."""

    def __init__(self, engine: SpeechEngine, replay_s: float = 60.0) -> None:
        self.sink = Sink()
        self.metrics = WorkerMetrics()
        self.failures: list[BaseException] = []
        self.thread = EngineThread(engine, self.sink, replay_s, self.metrics, self.failures.append)
        self.thread.start()

    def said(self, kind: type[Event], count: int = 1) -> None:
        wait_until(lambda: self.sink.count(kind) >= count, what=f"{count} {kind.__name__}")


@pytest.fixture
def start() -> Iterator[Callable[..., Running]]:
    started: list[Running] = []

    def make(engine: SpeechEngine, replay_s: float = 60.0) -> Running:
        started.append(Running(engine, replay_s))
        return started[-1]

    yield make
    for running in started:
        assert running.thread.stop(5.0)


def audio(seconds: float) -> np.ndarray[tuple[int], np.dtype[np.float32]]:
    return np.random.default_rng(0).standard_normal(int(seconds * 16_000)).astype(np.float32)


def feed(flow: StreamFlow, samples: np.ndarray[tuple[int], np.dtype[np.float32]]) -> Feed:
    return Feed(((flow, samples),))


def test_what_it_says_of_a_stream_is_in_order(start: Callable[..., Running]) -> None:
    running = start(NullEngine(2))
    one = flow(1)
    running.thread.put(Open(one, None), feed(one, audio(1.0)), Finish(one))
    wait_until(lambda: any(isinstance(e, Decoded) and e.outputs[-1].is_final for e in running.sink.events))
    assert isinstance(running.sink.events[0], Opened)
    outputs = [output for e in running.sink.events if isinstance(e, Decoded) for output in e.outputs]
    decoded = [output.samples_decoded for output in outputs]
    assert decoded == sorted(decoded)
    assert decoded[-1] == 16_000


def test_a_thread_whose_recordings_wait_for_live_chunks_is_not_idle(start: Callable[..., Running]) -> None:
    engine = NullEngine(2)
    waits = threading.Event()
    waits.set()
    engine._gaps.wait_s = lambda: 0.01 if waits.is_set() else 0.0  # type: ignore[method-assign]
    live, recording = flow(1), flow(2)
    record = replace(recording.owned.record, options=StreamOptions(recording=True))
    recording = StreamFlow(replace(recording.owned, record=record))
    running = start(engine)
    running.thread.put(Open(live, None), Open(recording, None), feed(recording, audio(0.32)))
    running.said(Opened, 2)
    wait_until(lambda: running.thread.between_turns)
    assert not running.thread.idle
    assert not running.sink.count(Decoded)
    waits.clear()
    running.said(Decoded)
    wait_until(lambda: running.thread.idle)


def test_a_stream_that_the_engine_refuses_fails_alone(start: Callable[..., Running]) -> None:
    running = start(NullEngine(1))
    one, two = flow(1), flow(2)
    running.thread.put(Open(one, None), Open(two, None), feed(two, audio(1.0)), feed(one, audio(0.32)))
    running.said(Decoded)
    failed = [event for event in running.sink.events if isinstance(event, Failed)]
    assert [(event.flow, event.error.code) for event in failed] == [(two, ErrorCode.WORKER_FAILED)]
    assert not running.failures


def test_audio_after_the_end_fails_its_stream(start: Callable[..., Running]) -> None:
    engine = NullEngine(1, step_ms=20)
    running = start(engine)
    one = flow(1)
    running.thread.put(Open(one, None), Finish(one), feed(one, audio(0.1)))
    running.said(Failed)
    assert engine.stats.open_streams == 0


def test_commands_for_a_stream_that_was_dropped_are_ignored(start: Callable[..., Running]) -> None:
    running = start(NullEngine(1))
    one = flow(1)
    running.thread.put(Open(one, None), Drop(one), feed(one, audio(1.0)), Finish(one), Drop(one))
    other = flow(2)
    running.thread.put(Open(other, None))
    running.said(Opened, 2)
    assert [type(event) for event in running.sink.events] == [Opened, Dropped, Opened]


def test_a_stream_that_comes_back_replaces_its_old_self(start: Callable[..., Running]) -> None:
    running = start(NullEngine(1))
    old, new = flow(1), flow(1, epoch=3)
    running.thread.put(Open(old, None), feed(old, audio(0.1)), Open(new, None), feed(old, audio(1.0)))
    running.thread.put(feed(new, audio(0.32)))
    running.said(Decoded)
    assert [type(event) for event in running.sink.events] == [Opened, Dropped, Opened, Decoded]
    dropped, opened = running.sink.events[1:3]
    assert isinstance(dropped, Dropped)
    assert isinstance(opened, Opened)
    assert (dropped.flow, opened.flow) == (old, new)


def test_snapshots_come_at_their_distance(start: Callable[..., Running]) -> None:
    # Half of what is kept for a replay; the first may come before.
    running = start(NullEngine(1), 2.0)
    one = flow(1)
    running.thread.put(Open(one, None))
    for _ in range(50):
        running.thread.put(feed(one, audio(0.16)))
    wait_until(lambda: sum(len(e.outputs) for e in running.sink.events if isinstance(e, Decoded)) == 50)
    taken = [event.samples_decoded for event in running.sink.events if isinstance(event, SnapshotTaken)]
    assert 3 <= len(taken) <= 9
    assert min(np.diff(taken)) >= 16_000


def snapshots(running: Running) -> list[int]:
    return [event.samples_decoded for event in running.sink.events if isinstance(event, SnapshotTaken)]


def answered(running: Running, count: int) -> None:
    """Wait until so many `finalize` have their answers."""
    events = running.sink.events
    wait_until(
        lambda: (
            sum(output.from_finalize for e in list(events) if isinstance(e, Decoded) for output in e.outputs)
            == count
        )
    )


def test_a_stream_that_is_finalized_before_each_whole_chunk_has_snapshots(
    start: Callable[..., Running],
) -> None:
    running = start(NullEngine(1), 2.0)
    one = flow(1)
    running.thread.put(Open(one, None))
    for number in range(100):
        running.thread.put(feed(one, audio(0.1)), Finalize(one, b"1-%d" % (2 * number + 2)))
    answered(running, 100)
    taken = snapshots(running)
    assert len(taken) >= 4
    assert max(np.diff([0, *taken, 160_000])) <= 32_000


@pytest.mark.parametrize("audio_s", [0.0, 0.32])
def test_finalizes_without_audio_have_snapshots_too(start: Callable[..., Running], audio_s: float) -> None:
    # Each leaves an entry in the audio log, which only a snapshot ends.
    running = start(NullEngine(1), 2.0)
    one = flow(1)
    running.thread.put(Open(one, None), feed(one, audio(audio_s)))
    for number in range(200):
        running.thread.put(Finalize(one, b"1-%d" % (number + 2)))
    answered(running, 200)
    assert len(snapshots(running)) >= 3


def test_no_snapshot_is_taken_while_others_wait_to_be_written(start: Callable[..., Running]) -> None:
    running = start(NullEngine(1), 2.0)
    running.sink.busy = True
    one = flow(1)
    running.thread.put(Open(one, None))
    for _ in range(20):
        running.thread.put(feed(one, audio(0.16)))
    wait_until(lambda: sum(len(e.outputs) for e in running.sink.events if isinstance(e, Decoded)) == 20)
    assert running.sink.count(SnapshotTaken) == 0
    running.sink.busy = False
    running.thread.put(feed(one, audio(0.16)))
    running.said(SnapshotTaken)


def test_a_stream_whose_server_takes_no_snapshot_holds_up_no_other(start: Callable[..., Running]) -> None:
    running = start(NullEngine(2), 2.0)
    away, here = flow(1), flow(2)
    running.sink.busy_with = {away.stream}
    running.thread.put(Open(away, None), Open(here, None))
    for _ in range(20):
        running.thread.put(feed(away, audio(0.16)), feed(here, audio(0.16)))
    running.said(SnapshotTaken)
    taken = {event.flow.stream for event in running.sink.events if isinstance(event, SnapshotTaken)}
    assert taken == {here.stream}
    running.sink.busy_with = set()
    running.thread.put(feed(away, audio(0.16)))
    wait_until(
        lambda: any(isinstance(e, SnapshotTaken) and e.flow is away for e in running.sink.events),
        what="the other snapshot",
    )


@pytest.mark.parametrize("engine", [NullEngine(1), SpeechEngine(OverlappingSteps(NullSteps(1)), Letters())])
def test_a_finalize_while_a_snapshot_is_due_puts_it_off(
    start: Callable[..., Running], engine: SpeechEngine
) -> None:
    running = start(engine, 2.0)
    running.sink.busy = True
    one = flow(1)
    running.thread.put(Open(one, None))
    for _ in range(12):
        running.thread.put(feed(one, audio(0.16)))
    wait_until(lambda: sum(len(e.outputs) for e in running.sink.events if isinstance(e, Decoded)) == 12)
    running.sink.busy = False  # the snapshot is due, and the engine ends the part before it is taken
    running.thread.put(feed(one, audio(0.1)), Finalize(one, b"1-2"))
    wait_until(
        lambda: any(isinstance(e, Decoded) and e.outputs[-1].from_finalize for e in running.sink.events)
    )
    for _ in range(12):
        running.thread.put(feed(one, audio(0.16)))
    running.said(SnapshotTaken)


def test_a_hand_over_snapshots_and_forgets_everything(start: Callable[..., Running]) -> None:
    engine = NullEngine(3)
    running = start(engine)
    heard, silent = flow(1), flow(2)
    running.thread.put(Open(heard, None), Open(silent, None), feed(heard, audio(0.2)))
    running.said(Decoded)
    running.thread.put(HandOver())
    running.said(HandedOver)
    snapshots = [event for event in running.sink.events if isinstance(event, SnapshotTaken)]
    assert [(event.flow, event.samples_decoded, event.release) for event in snapshots] == [
        (heard, 2560, True)
    ]
    assert running.sink.count(Dropped) == 1, "nothing was decoded of it: it begins anew"
    assert engine.stats.open_streams == 0


class Landing(NullEngine):
    """Asked about one stream, it finds that the step under way was another's last."""

    def snapshot(self, stream: StreamId, *, whole: bool = False) -> StreamSnapshot:
        if stream == 1 and self.stats.open_streams == 2:
            self.close(StreamId(2))
        return super().snapshot(stream, whole=whole)


def test_a_stream_that_ends_during_the_hand_over_does_not_stop_it(start: Callable[..., Running]) -> None:
    running = start(Landing(2))
    one, ends = flow(1), flow(2)
    running.thread.put(Open(one, None), Open(ends, None), feed(one, audio(0.2)), feed(ends, audio(0.2)))
    wait_until(lambda: sum(len(e.outputs) for e in running.sink.events if isinstance(e, Decoded)) >= 2)
    running.thread.put(HandOver())
    running.said(HandedOver)
    assert [event.flow for event in running.sink.events if isinstance(event, SnapshotTaken)] == [one]
    assert [event.flow for event in running.sink.events if isinstance(event, Dropped)] == [ends]
    assert not running.failures


def test_a_stream_that_ends_during_another_ones_snapshot_does_not_stop_the_worker(
    start: Callable[..., Running],
) -> None:
    running = start(Landing(2), 2.0)
    running.sink.busy = True
    one, ends = flow(1), flow(2)
    running.thread.put(Open(one, None), Open(ends, None))
    for _ in range(6):
        running.thread.put(feed(one, audio(0.16)), feed(ends, audio(0.16)))
    wait_until(lambda: sum(len(e.outputs) for e in running.sink.events if isinstance(e, Decoded)) == 12)
    running.sink.busy = False  # snapshots of both are due and not late, that of `one` first
    running.thread.put(feed(one, audio(0.16)))
    running.said(SnapshotTaken)
    running.thread.put(feed(one, audio(0.16)))
    wait_until(lambda: sum(len(e.outputs) for e in running.sink.events if isinstance(e, Decoded)) == 14)
    assert {event.flow.stream for event in running.sink.events if isinstance(event, SnapshotTaken)} == {1}
    assert not running.failures


class Lost(NullEngine):
    """Its device goes when a stream opens."""

    def open(self, stream: StreamId, options: StreamOptions, snapshot: bytes | None = None) -> None:
        raise GroupLost("The process with the device is gone.")


def test_a_device_that_is_lost_while_a_stream_opens_fails_the_worker_and_not_the_stream() -> None:
    running = Running(Lost(1))
    running.thread.put(Open(flow(1), None))
    wait_until(lambda: running.failures)
    assert [type(error) for error in running.failures] == [GroupLost]
    assert running.sink.count(Failed) == 0
    wait_until(lambda: not running.thread.alive)


class Broken(NullEngine):
    def step(self) -> Sequence[StreamOutput]:
        raise RuntimeError("device lost")


def test_a_failing_engine_is_reported_and_ends_the_thread() -> None:
    running = Running(Broken(1))
    one = flow(1)
    running.thread.put(Open(one, None), feed(one, audio(1.0)))
    wait_until(lambda: running.failures)
    assert [str(error) for error in running.failures] == ["device lost"]
    wait_until(lambda: not running.thread.alive)


def test_a_finalize_ends_a_part_and_what_follows_waits_for_the_next(start: Callable[..., Running]) -> None:
    running = start(NullEngine(1))
    one = flow(1)
    first, second = audio(1.0), audio(0.5)
    running.thread.put(
        Open(one, None),
        feed(one, first),
        Finalize(one, b"1-2"),
        feed(one, second),
        Finalize(one, b"1-4"),
        Finalize(one, b"1-5"),
        Finish(one),
    )
    wait_until(lambda: any(isinstance(e, Decoded) and e.outputs[-1].is_final for e in running.sink.events))
    outputs = [output for e in running.sink.events if isinstance(e, Decoded) for output in e.outputs]
    answers = [output for output in outputs if output.from_finalize]
    assert [answer.samples_decoded for answer in answers] == [16_000, 24_000, 24_000]
    assert [answer.is_final for answer in answers] == [False] * 3
    assert outputs[-1].samples_decoded == 24_000
    assert [output.samples_decoded for output in outputs] == sorted(
        output.samples_decoded for output in outputs
    )
    assert outputs[-1].text == answers[-1].text == answers[1].text
    assert answers[1].text.startswith(f"{answers[0].text} ")


class Phrased(NullEngine):
    """Notes the phrases that it is told, and stands for an engine that boosts them."""

    def __init__(self) -> None:
        super().__init__(1)
        self.opened: list[tuple[Phrase, ...]] = []
        self.replaced: list[tuple[tuple[Phrase, ...], int]] = []

    def open(self, stream: StreamId, options: StreamOptions, snapshot: bytes | None = None) -> None:
        super().open(stream, replace(options, phrases=()), snapshot)
        self.opened.append(options.phrases)

    def replace_phrases(self, stream: StreamId, phrases: tuple[Phrase, ...], sample: int) -> None:
        self.replaced.append((phrases, sample))

    def phrases(self, stream: StreamId) -> tuple[Phrase, ...]:
        return self.replaced[-1][0] if self.replaced else self.opened[-1]


def test_phrases_keep_their_place_and_go_on_over_a_finalize(start: Callable[..., Running]) -> None:
    first, second = (Phrase("Zyrtec"),), (Phrase("Jane Doe", 2.0),)
    engine = Phrased()
    running = start(engine)
    one = flow(1)
    running.thread.put(
        Open(one, None),
        feed(one, audio(1.0)),
        ReplacePhrases(one, first, 16_000),
        Finalize(one, b"1-3"),
        ReplacePhrases(one, second, 16_000),
        feed(one, audio(0.5)),
        ReplacePhrases(one, (), 24_000),
        Finish(one),
    )
    wait_until(lambda: any(isinstance(e, Decoded) and e.outputs[-1].is_final for e in running.sink.events))
    assert engine.opened == [(), first]
    # Those behind the finalize waited for the next part, and count from its beginning.
    assert engine.replaced == [(first, 16_000), (second, 0), ((), 8_000)]


def test_a_stream_without_its_snapshot_has_the_phrases_that_the_snapshot_has(
    start: Callable[..., Running],
) -> None:
    phrases = (Phrase("Zyrtec", 2.0),)
    host = {"phrases": encode_phrases(phrases).decode()}
    engine = Phrased()
    running = start(engine)
    running.thread.put(Open(flow(1), Snapshot("another model", host, {}).to_bytes()))
    running.said(Opened)
    assert engine.opened == [phrases]


def test_a_stream_that_is_dropped_while_a_part_ends_leaves_nothing(start: Callable[..., Running]) -> None:
    running = start(NullEngine(1))
    one, two = flow(1), flow(2)
    running.thread.put(
        Open(one, None), feed(one, audio(1.0)), Finalize(one, b"1-2"), feed(one, audio(1.0)), Drop(one)
    )
    running.said(Dropped)
    running.thread.put(Open(two, None), feed(two, audio(0.5)), Finish(two))
    wait_until(lambda: any(isinstance(e, Decoded) and e.outputs[-1].is_final for e in running.sink.events))
    assert not running.failures
