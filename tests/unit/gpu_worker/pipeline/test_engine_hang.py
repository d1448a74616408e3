"""How long the engine's thread is busy: a hang shows there, and a wait for Redis does not."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import numpy as np

from common.entries import StreamId
from common.monitoring.metrics import WorkerMetrics
from common.process.pace import Pace
from gpu_worker.engine.engine import SpeechEngine
from gpu_worker.engine.interface import StreamOutput, StreamSnapshot
from gpu_worker.engine.steps import Flight
from gpu_worker.pipeline.engine_events import Decoded, Event, Feed, HandedOver, HandOver, Open, Opened
from gpu_worker.pipeline.engine_thread import EngineThread
from gpu_worker.pipeline.flow import StreamFlow
from gpu_worker.steps.null import Letters, NullEngine, NullSteps
from tests.device.overlapping_steps import OverlappingSteps
from tests.stream_records import owned_stream
from tests.waiting import wait_until


class Sink:
    """Takes events while it has room."""

    def __init__(self) -> None:
        self.events: list[Event] = []
        self.has_room = threading.Event()
        self.has_room.set()
        self.waits = False

    def put(self, event: Event) -> None:
        self.waits = not self.has_room.is_set()
        self.has_room.wait(60)
        self.events.append(event)

    def takes_snapshot(self, _stream: StreamId | None = None) -> bool:
        return False

    def has(self, kind: type[Event]) -> bool:
        return any(isinstance(event, kind) for event in self.events)


@contextmanager
def running(engine: SpeechEngine) -> Iterator[tuple[EngineThread, Sink]]:
    sink, failures = Sink(), list[BaseException]()
    thread = EngineThread(engine, sink, 60.0, WorkerMetrics(), failures.append)
    thread.start()
    yield thread, sink
    assert thread.stop(5.0)
    assert not failures


def flow(number: int) -> StreamFlow:
    return StreamFlow(owned_stream(number))


def feed(flow: StreamFlow, seconds: float) -> Feed:
    return Feed(((flow, np.zeros(int(seconds * 16_000), np.int16)),))


class Stuck(NullEngine):
    def __init__(self) -> None:
        super().__init__(1)
        self.release = threading.Event()

    def step(self) -> Sequence[StreamOutput]:
        self.release.wait(60)
        return super().step()


def test_how_long_it_hangs_is_seen_from_outside() -> None:
    engine, one = Stuck(), flow(1)
    with running(engine) as (thread, sink):
        assert thread.busy_s == 0.0
        thread.put(Open(one, None), feed(one, 1.0))
        wait_until(lambda: thread.busy_s > 0.1)
        engine.release.set()
        wait_until(lambda: sink.has(Decoded) and thread.busy_s == 0.0)


class Hanging(OverlappingSteps):
    """Steps of a device that is not done before it is told."""

    def __init__(self) -> None:
        super().__init__(NullSteps(1, 160, hears=False))
        self.done = threading.Event()

    def is_over(self, flight: Flight) -> bool:
        return self.done.is_set()


def paced(steps: OverlappingSteps) -> SpeechEngine:
    """An engine that waits between two steps."""
    now_s = 0.0
    pace = Pace(0.02, lambda: now_s, lambda: now_s)
    while pace.interval_s < 0.02:
        pace.begun()
        now_s += 0.05
    return SpeechEngine(steps, Letters(), pace=pace)


def test_a_step_that_a_paced_engine_waits_for_is_no_rest() -> None:
    steps, one = Hanging(), flow(1)
    with running(paced(steps)) as (thread, sink):
        thread.put(Open(one, None), feed(one, 0.16))
        wait_until(lambda: thread.busy_s > 0.1)
        assert not thread.idle
        steps.done.set()
        wait_until(lambda: sink.has(Decoded) and thread.busy_s == 0.0 and thread.idle)


def test_audio_that_comes_meanwhile_hides_no_hang() -> None:
    steps, one = Hanging(), flow(1)
    with running(paced(steps)) as (thread, sink):
        thread.put(Open(one, None), feed(one, 0.16))

        def hangs() -> bool:
            thread.put(feed(one, 0.001))
            return thread.busy_s > 0.3

        wait_until(hangs)
        steps.done.set()
        wait_until(lambda: sink.has(Decoded) and thread.busy_s == 0.0)


def test_a_wait_for_redis_is_no_hang_whatever_waits() -> None:
    """As of a thousand streams that open after a takeover, while Redis stands still."""
    one = flow(1)
    with running(NullEngine(1)) as (thread, sink):
        sink.has_room.clear()
        thread.put(Open(one, None))
        wait_until(lambda: sink.waits)
        assert thread.busy_s == 0.0
        sink.has_room.set()
        wait_until(lambda: sink.has(Opened) and thread.busy_s == 0.0)


class SlowToExport(NullEngine):
    """Takes snapshots as a lane does, which waits for its group each time."""

    busy_s: list[float]
    thread: EngineThread

    def snapshot(self, stream: StreamId, *, whole: bool = False) -> StreamSnapshot:
        time.sleep(0.02)  # stands for the wait
        self.busy_s.append(self.thread.busy_s)
        return super().snapshot(stream, whole=whole)


def test_a_hand_over_of_many_streams_is_no_single_turn() -> None:
    engine, flows = SlowToExport(30), list(map(flow, range(1, 31)))
    with running(engine) as (engine.thread, sink):
        engine.busy_s = []
        thread = engine.thread
        thread.put(*(Open(one, None) for one in flows), *(feed(one, 0.32) for one in flows))
        wait_until(lambda: sink.has(Decoded) and thread.idle)
        thread.put(HandOver())
        wait_until(lambda: sink.has(HandedOver))
    assert len(engine.busy_s) == len(flows)
    assert sorted(engine.busy_s)[len(flows) // 2] < 0.3, "all together take twice as long"
