"""Runs the steps of a device for its lanes, in one thread: takes their flights, merges them, answers.

A lane that is frozen, slow or dead is left out; no other lane waits for it. While a step runs, rows gather
for the next one. The next step is launched before the first is read if it is large enough (`_MIN_SHARE`): an
earlier launch would have few rows and keep the device from a fuller step.
"""

from __future__ import annotations

import logging
import threading
import time
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np
from numpy.typing import NDArray

from common.monitoring.metrics import GroupMetrics
from gpu_worker.engine.phrases.tree_memory import NO_TREE
from gpu_worker.engine.steps import Flight, Steps
from gpu_worker.lanes.bell import Bell
from gpu_worker.lanes.port import (
    DropTree,
    Export,
    LaneFault,
    LaneFlight,
    LanePort,
    Load,
    PutTree,
    Request,
    UseTree,
)
from gpu_worker.lanes.segment import stage_counts

logger = logging.getLogger(__name__)

# Waiting rows, as a share of the rows in the running step, from which the next step is launched ahead.
_MIN_SHARE: Final = 0.5
_IDLE_S: Final = 1.0


@dataclass(frozen=True, slots=True)
class _Step:
    """A running step, and the lanes whose rows it has."""

    flights: Sequence[LaneFlight]
    flight: Flight


class StepServer:
    """Runs the steps of a device for its lanes.

    Args:
        steps: steps of the device.
        bell: rung by lanes that have launched a flight or sent a request.
    """

    def __init__(self, steps: Steps, bell: Bell) -> None:
        self._steps = steps
        self._bell = bell
        self._ports: list[LanePort] = []
        self._lock = threading.Lock()
        self._stopping = False
        self._left: deque[LanePort] = deque()
        self._waiting: list[LaneFlight] = []
        self._under_way: deque[_Step] = deque()
        self._counted = stage_counts(steps.stats)
        self._busy_since: float | None = None
        self.step_rows = GroupMetrics().step_rows

    @property
    def busy_s(self) -> float:
        """Return seconds since the present turn began; 0 while there is nothing to do."""
        since = self._busy_since
        return 0.0 if since is None else time.monotonic() - since

    def add(self, port: LanePort) -> None:
        """Serve one more lane. For any thread."""
        with self._lock:
            self._ports = [*self._ports, port]
        port.start()
        self._bell.ring()

    def remove(self, port: LanePort) -> None:
        """Stop serving a lane. For any thread."""
        port.close()
        with self._lock:
            self._ports = [other for other in self._ports if other is not port]
            self._left.append(port)
        self._bell.ring()

    def stop(self) -> None:
        """Make `run` return. For any thread."""
        self._stopping = True
        self._bell.ring()

    def run(self) -> None:
        """Serve until `stop`."""
        while not self._stopping:
            self._busy_since = time.monotonic()
            self.turn()

    def turn(self) -> None:
        """Launch a step, or read one, or sleep until a lane rings."""
        self._collect()
        if self._waiting and self._may_launch():
            self._launch()
        elif self._under_way:
            self._land(self._under_way.popleft())
        else:
            self._busy_since = None
            self._bell.wait(_IDLE_S)

    def _collect(self) -> None:
        """Serve the lanes' requests and collect their flights, each lane's in its order."""
        self._waiting = [flight for flight in self._waiting if not flight.port.gone]
        while self._left:
            self._tidy(self._left.popleft())
        waits = {id(flight.port) for flight in self._waiting}
        for port in self._ports:
            if port.gone or id(port) in waits:
                continue
            # Not those that come meanwhile: a lane that goes on asking would hold up all others.
            for _ in range(port.num_waiting):
                request = port.next_request()
                if request is None:
                    break
                self._serve(port, request)
            try:
                flight = port.next_flight()
            except LaneFault as error:
                logger.error("a lane is ended: it launches %s", error)
                port.close()
                continue
            if flight is not None:
                self._waiting.append(flight)

    def _may_launch(self) -> bool:
        if not self._under_way:
            return True
        if not self._steps.shape.overlaps or len(self._under_way) > 1:
            return False
        rows = sum(flight.num_rows for flight in self._waiting)
        return rows >= _MIN_SHARE * self._under_way[0].flight.num_rows

    def _launch(self) -> None:
        """Launch one step of flights that fit into it: all rows of a step have equally many chunks."""
        chunks, room = self._waiting[0].num_chunks, self._steps.shape.max_rows
        flights: list[LaneFlight] = []
        for flight in self._waiting:
            if flight.num_chunks == chunks and flight.num_rows <= room:
                flights.append(flight)
                room -= flight.num_rows
        self._waiting = [flight for flight in self._waiting if flight not in flights]
        for flight in flights:  # first of all: if this process dies, lanes name the streams of these flights
            flight.port.take()
        resets = np.concatenate([flight.resets_R2 for flight in flights])
        if len(resets):
            self._steps.reset(resets[:, 0].tolist(), resets[:, 1].tolist())
        rows = np.concatenate([flight.rows_FB for flight in flights], axis=1)
        table = np.concatenate([flight.table_BM for flight in flights])
        self._under_way.append(_Step(flights, self._steps.launch(rows, table)))
        self.step_rows.observe(rows.shape[1])

    def _land(self, step: _Step) -> None:
        found = self._steps.wait(step.flight)
        counted = stage_counts(self._steps.stats)
        spent, self._counted = counted - self._counted, counted
        first = 0
        for flight in step.flights:
            rows = slice(first, first + flight.num_rows)
            first = rows.stop
            flight.port.answer(flight, found, rows, self._part(spent, flight.num_rows / step.flight.num_rows))

    @staticmethod
    def _part(spent: NDArray[np.float64], share: float) -> NDArray[np.float64]:
        """Return a lane's part of a step's stages: all calls, and its rows' share of the seconds."""
        part = spent.copy()
        part[1::2] *= share
        return part

    def _serve(self, port: LanePort, request: Request) -> None:
        steps = self._steps
        match request:
            case Export(number, slot, kept):
                port.send_export(number, steps.export(slot, kept))
            case Load(number, slot, kept, state):
                try:
                    steps.load(slot, kept, state)
                except (KeyError, ValueError) as error:
                    port.say(number, error)
                else:
                    port.say(number)
            case PutTree(at, tree):
                steps.trees.put(at, steps.trees.prepare(tree))
                port.places.add(at)
            case DropTree(at):
                steps.trees.drop(at)
                port.places.discard(at)
            case UseTree(slot, at, num_nodes, anew):
                steps.trees.use(slot, at, num_nodes, anew=anew)
                (port.boosted.discard if at == NO_TREE else port.boosted.add)(slot)

    def _tidy(self, port: LanePort) -> None:
        """Release the trees of a lane that is gone: its slots and places are for the next one."""
        for slot in port.boosted:
            self._steps.trees.use(slot, NO_TREE, 0, anew=True)
        for at in port.places:
            self._steps.trees.drop(at)
