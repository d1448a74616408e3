"""Each event goes to the outlet of its stream's server."""

from __future__ import annotations

from typing import Any

from common.entries import StreamId
from common.redis.clients import RedisServers
from gpu_worker.cold_start import acknowledgement
from gpu_worker.pipeline.engine_events import Decoded, Dropped, Event, HandedOver
from gpu_worker.pipeline.flow import StreamFlow
from gpu_worker.pipeline.outlets import Outlets
from tests.stream_records import owned_stream


class _Outlet:
    def __init__(self, *, busy: bool = False, handed_over: bool = True) -> None:
        self.events: list[Event] = []
        self.busy = busy
        self.handed_over = handed_over
        self.ends: list[str] = []

    def put(self, event: Event) -> None:
        self.events.append(event)

    def takes_snapshot(self) -> bool:
        return not self.busy

    def wait_handed_over(self, _timeout_s: float) -> bool:
        return self.handed_over

    def finish(self) -> None:
        self.ends.append("finish")

    def stop(self, _timeout_s: float) -> None:
        self.ends.append("stop")


def _outlets(*outlets: Any, shards: int = 4) -> Outlets:
    urls = tuple(f"redis://server-{number}" for number in range(len(outlets)))
    return Outlets(RedisServers.parse(urls, shards), outlets)


def _output(stream: int) -> Any:
    return acknowledgement(StreamId(stream), 0)


def test_outputs_of_one_step_go_to_their_servers_in_order() -> None:
    first, second = _Outlet(), _Outlet()
    outputs = [_output(stream) for stream in (4, 1, 6, 3, 2)]
    _outlets(first, second).put(Decoded(outputs))
    assert first.events == [Decoded([outputs[0], outputs[2], outputs[4]])]
    assert second.events == [Decoded([outputs[1], outputs[3]])]


def test_a_server_without_outputs_gets_no_event_and_a_lone_one_the_whole() -> None:
    first, second = _Outlet(), _Outlet()
    _outlets(first, second).put(Decoded([_output(3)]))
    assert (first.events, len(second.events)) == ([], 1)
    alone, event = _Outlet(), Decoded([_output(3), _output(4)])
    _outlets(alone).put(event)
    assert alone.events[0] is event


def test_what_is_of_one_stream_goes_to_its_server_and_the_hand_over_to_all() -> None:
    first, second = _Outlet(), _Outlet(handed_over=False)
    outlets = _outlets(first, second)
    flow = StreamFlow(owned_stream(3))
    outlets.put(Dropped(flow))
    outlets.put(HandedOver())
    assert first.events == [HandedOver()]
    assert second.events == [Dropped(flow), HandedOver()]
    assert not outlets.wait_handed_over(1.0)
    second.handed_over = True
    assert outlets.wait_handed_over(1.0)


def test_a_snapshot_is_taken_where_its_server_has_room() -> None:
    outlets = _outlets(_Outlet(busy=True), _Outlet())
    assert outlets.takes_snapshot()
    assert not outlets.takes_snapshot(StreamId(2))
    assert outlets.takes_snapshot(StreamId(3))
    assert not _outlets(_Outlet(busy=True), _Outlet(busy=True)).takes_snapshot()


def test_all_begin_to_end_before_one_is_waited_for() -> None:
    order: list[str] = []
    first, second = _Outlet(), _Outlet()
    first.ends = second.ends = order
    _outlets(first, second).stop(1.0)
    assert order == ["finish", "finish", "stop", "stop"]
