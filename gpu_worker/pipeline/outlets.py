"""The outlets of a worker, one a Redis server: what is written to one server waits for no other."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

from common.entries import StreamId
from common.process.stop_times import StopClock
from common.redis.clients import RedisServers
from gpu_worker.engine.interface import StreamOutput
from gpu_worker.pipeline.engine_events import Decoded, Event, HandedOver
from gpu_worker.pipeline.outlet import Outlet


class Outlets:
    """Takes the events of the engine thread for the outlets of their streams' servers (an `EventSink`).

    outlets: one a server, in the order of the servers.
    """

    def __init__(self, servers: RedisServers, outlets: Sequence[Outlet]) -> None:
        self._servers = servers
        self.outlets: Final = tuple(outlets)

    def put(self, event: Event) -> None:
        """Take an event; wait while the queue of a server is full."""
        match event:
            case HandedOver():
                for outlet in self.outlets:
                    outlet.put(event)
            case Decoded(outputs) if len(self.outlets) > 1:
                shares: dict[int, list[StreamOutput]] = {}
                for output in outputs:
                    shares.setdefault(self._server_of(output.stream), []).append(output)
                for server, share in shares.items():
                    self.outlets[server].put(Decoded(share))
            case Decoded():
                self.outlets[0].put(event)
            case _:
                self.outlets[self._server_of(event.flow.stream)].put(event)

    def takes_snapshot(self, stream: StreamId | None = None) -> bool:
        """Return whether a snapshot of this stream, or else of some stream, would be written soon."""
        if stream is None:
            return any(outlet.takes_snapshot() for outlet in self.outlets)
        return self.outlets[self._server_of(stream)].takes_snapshot()

    def wait_handed_over(self, timeout_s: float) -> bool:
        """Wait until the requested hand-over is in Redis; return False after the time-out."""
        clock = StopClock(timeout_s)
        return all(outlet.wait_handed_over(clock.left_s(timeout_s)) for outlet in self.outlets)

    def stop(self, timeout_s: float) -> None:
        """End the threads after the queued events."""
        for outlet in self.outlets:
            outlet.finish()
        clock = StopClock(timeout_s)
        for outlet in self.outlets:
            outlet.stop(clock.left_s(timeout_s))

    def _server_of(self, stream: StreamId) -> int:
        return self._servers.server_of_shard(stream % self._servers.shards)
