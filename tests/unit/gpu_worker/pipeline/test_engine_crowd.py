"""The engine's thread, where many commands come at once."""

from __future__ import annotations

import time

import numpy as np

from common.entries import StreamId
from common.monitoring.metrics import WorkerMetrics
from common.options import StreamOptions
from gpu_worker.pipeline.engine_events import Decoded, Event, Feed, Finish, Open, Opened
from gpu_worker.pipeline.engine_thread import EngineThread
from gpu_worker.pipeline.flow import StreamFlow
from gpu_worker.steps.null import NullEngine
from tests.stream_records import owned_stream
from tests.waiting import wait_until

CROWD = 150


class SlowToOpen(NullEngine):
    """Opens streams as a lane does, which waits for its group each time."""

    def open(self, stream: StreamId, options: StreamOptions, snapshot: bytes | None = None) -> None:
        time.sleep(0.005)  # stands for the wait
        super().open(stream, options, snapshot)


class Sink:
    def __init__(self) -> None:
        self.events: list[Event] = []

    def put(self, event: Event) -> None:
        self.events.append(event)

    def takes_snapshot(self, _stream: StreamId | None = None) -> bool:
        return False

    def opened(self) -> list[StreamFlow]:
        return [event.flow for event in self.events if isinstance(event, Opened)]

    def finals(self) -> list[StreamId]:
        decoded = [event for event in self.events if isinstance(event, Decoded)]
        return [output.stream for event in decoded for output in event.outputs if output.is_final]


def test_a_crowd_of_streams_that_open_is_no_single_turn() -> None:
    """After a takeover: else the turn would count as a hang. What others have fed is decoded in between."""
    sink, failures = Sink(), list[BaseException]()
    thread = EngineThread(SlowToOpen(CROWD + 1), sink, 60.0, WorkerMetrics(), failures.append)
    thread.start()
    live, *crowd = [StreamFlow(owned_stream(number)) for number in range(1, CROWD + 2)]
    thread.put(Open(live, None))
    wait_until(lambda: sink.opened() == [live])
    # An order for one of the crowd keeps its place.
    second = np.zeros(16_000, np.int16)
    thread.put(Feed([(live, second)]), *(Open(flow, None) for flow in crowd), Finish(crowd[-1]))
    wait_until(lambda: crowd[-1].stream in sink.finals())
    kinds = list(map(type, sink.events))
    assert kinds[: kinds.index(Decoded)].count(Opened) < CROWD / 2
    assert sink.opened() == [live, *crowd]
    assert sink.finals() == [crowd[-1].stream]
    assert thread.stop(5.0)
    assert not failures
