"""A device's steps and lanes over them in one process: what group.py and lane.py do in several."""

from __future__ import annotations

import socket
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from gpu_worker.engine.engine import SpeechEngine
from gpu_worker.engine.steps import AllocateRings, RingMemory, Steps
from gpu_worker.lanes.bell import Bell
from gpu_worker.lanes.group import share_of
from gpu_worker.lanes.link import GroupLink
from gpu_worker.lanes.port import LanePort, Share
from gpu_worker.lanes.segment import FlightSizes, LaneArea, SharedMemory
from gpu_worker.lanes.server import StepServer
from gpu_worker.lanes.steps import LaneSteps


class LaneStack:
    """The steps of an engine, shared by so many lanes.

    make: the engine over the whole device, in rings that are made as it is told.
    """

    def __init__(
        self, make: Callable[[AllocateRings], SpeechEngine], num_lanes: int, num_tokens: int = 0
    ) -> None:
        engine = make(RingMemory.allocate)
        self.device: Steps = engine.steps
        self.bell = Bell.create()
        self.server = StepServer(self.device, self.bell)
        self.shares = [
            share_of(self.device, number, num_lanes, num_tokens=num_tokens) for number in range(num_lanes)
        ]
        self.ports: list[LanePort] = []
        self.lanes = [self.open_lane(share) for share in self.shares]
        self.thread = threading.Thread(target=self.server.run, daemon=True)

    def open_lane(self, share: Share) -> LaneSteps:
        """A lane with its port."""
        sizes = FlightSizes.of(share.shape)
        memory = SharedMemory.create("lane", LaneArea.num_bytes(sizes))
        ours, theirs = socket.socketpair()
        bell = Bell.create()
        port = LanePort(share, LaneArea(sizes, memory), ours, bell, self.bell.ring)
        self.ports.append(port)
        self.server.add(port)
        link = GroupLink(theirs, bell)
        first, end = share.first_slot, share.first_slot + share.shape.num_slots
        rings = RingMemory(self.device.rings.float32_SC[first:end])
        steps = LaneSteps(share.shape, rings, LaneArea(sizes, memory), self.bell, bell, link, share.num_words)
        link.start(lambda _: None)
        memory.close_fd()
        return steps


@contextmanager
def lane_stack(
    make: Callable[[AllocateRings], SpeechEngine], num_lanes: int = 2, num_tokens: int = 0
) -> Iterator[LaneStack]:
    """Lanes whose steps run in a thread, until the end of the block."""
    stack = LaneStack(make, num_lanes, num_tokens)
    stack.thread.start()
    try:
        yield stack
    finally:
        stack.server.stop()
        stack.thread.join(10)
        for port in stack.ports:
            port.close()
