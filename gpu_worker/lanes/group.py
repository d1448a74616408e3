"""The group: the process that owns a device for several lanes. It loads the model and runs the lanes' steps.

Its main thread starts lanes, restarts lanes that end, and forwards signals; one thread runs steps; two
threads for each lane receive its requests and send states. When this process ends, every lane sees its socket
end and ends too, so no lane outlives it: the kernel wakes one that is stopped. It holds no stream: all state
of a stream is in its lane and in Redis.
"""

from __future__ import annotations

import logging
import math
import queue
import socket
import subprocess
import sys
import threading
import time
from contextlib import ExitStack
from dataclasses import dataclass, field, replace
from types import FrameType
from typing import Final

from common.errors import SettingsError
from common.monitoring.metrics import GroupMetrics
from common.process.backoff import Backoff
from common.process.garbage import collect_rarely
from common.process.stop_times import HAND_OVER_S, STOP_MARGIN_S
from common.settings import WorkerSettings, child_argv, child_environment, lane_ids
from gpu_worker.backend import make_backend
from gpu_worker.engine.steps import RingMemory, Steps
from gpu_worker.hang import HangWatch
from gpu_worker.lanes.bell import Bell
from gpu_worker.lanes.facts import LaneFacts, lane_port
from gpu_worker.lanes.port import LanePort, Share
from gpu_worker.lanes.segment import FlightSizes, LaneArea, SharedMemory
from gpu_worker.lanes.server import StepServer
from gpu_worker.model.tokenizer import Tokenizer
from gpu_worker.worker import COLLECT_AFTER, EXIT_FAILED, EXIT_HUNG

logger = logging.getLogger(__name__)

LANE_MODULE: Final = "gpu_worker.lanes.lane"
EXIT_WRONG: Final = 2
_LOOK_S: Final = 0.5


@dataclass(slots=True)
class _Lane:
    """One lane, over its successive processes."""

    number: int
    settings: WorkerSettings
    share: Share
    backoff: Backoff = field(default_factory=Backoff)
    process: subprocess.Popen[bytes] | None = None
    port: LanePort | None = None
    start_at: float | None = 0.0
    kill_at: float | None = None
    """When a process is killed that the group serves no more."""


@dataclass(frozen=True, slots=True)
class _Ended:
    lane: _Lane
    status: int


class Group:
    """The group of one device. `run` returns the exit status; the other methods may be called meanwhile."""

    def __init__(self, settings: WorkerSettings) -> None:
        num_lanes = settings.lanes
        slots = -(-settings.worker_max_streams // num_lanes)
        self._settings = settings
        self._memory: SharedMemory | None = None
        whole = replace(settings, worker_max_streams=slots * num_lanes, lanes=1)
        self._backend = make_backend(whole, rings=self._share_rings)
        steps = self._backend.engine.steps
        self._bell = Bell.create()
        self._server = StepServer(steps, self._bell)
        self._watch = HangWatch(_LOOK_S, settings.step_timeout_ms / 1000)
        self._steps_thread = threading.Thread(target=self._run_steps, name="steps", daemon=True)
        self._events: queue.SimpleQueue[_Ended | int] = queue.SimpleQueue()
        self._num_signals = 0
        self._num_restarts = 0
        self._failure: BaseException | None = None
        prompt, vocabulary = self._backend.prompt, self._backend.vocabulary
        names = lane_ids(settings.worker_id, num_lanes)
        self._lanes = [
            _Lane(
                number,
                replace(
                    settings,
                    worker_id=name,
                    worker_max_streams=slots,
                    lanes=1,
                    metrics_port=lane_port(settings, number),
                ),
                share_of(
                    steps,
                    number,
                    num_lanes,
                    num_prompts=1 if prompt is None else prompt.num_prompts,
                    words_taken=self._backend.engine.book.end,
                    num_tokens=0 if vocabulary is None else Tokenizer(vocabulary).vocab_size,
                ),
            )
            for number, name in enumerate(names)
        ]

    def _share_rings(self, num_slots: int, num_samples: int) -> RingMemory:
        """Allocate rings that lanes can write."""
        shape = (num_slots + 1, num_samples)
        self._memory = SharedMemory.create("parakeet-rings", 4 * shape[0] * shape[1])
        return RingMemory(self._memory.array("float32", shape))

    def request_stop(self, number: int, _frame: FrameType | None) -> None:
        """Handle a signal: forward it to the lanes."""
        self._events.put(number)

    def fail(self, error: BaseException) -> None:
        """End the group, and all of its lanes with it, for an error in one of its threads."""
        if self._failure is None:
            self._failure = error
        self._events.put(0)

    # For the thread that answers probes

    @property
    def hangs(self) -> bool:
        """Return whether a turn of the device has taken longer than --step-timeout-ms."""
        return self._server.busy_s > self._settings.step_timeout_ms / 1000

    def pid_of(self, lane: int) -> int | None:
        """Return the process of a lane; None while it has none."""
        process = self._lanes[lane].process
        return None if process is None else process.pid

    def read_metrics(self) -> GroupMetrics:
        """Return the present metrics."""
        metrics = GroupMetrics()
        metrics.lanes = sum(lane.process is not None for lane in self._lanes)
        metrics.lane_restarts = self._num_restarts
        metrics.step_rows = self._server.step_rows
        metrics.device_busy_seconds = self._server.busy_s
        return metrics

    # Life

    def run(self) -> int:
        """Serve lanes until a signal or a failure; return the exit status."""
        collect_rarely(*COLLECT_AFTER)
        self._steps_thread.start()
        deadline: float | None = None
        try:
            while self._failure is None:
                status = self._look(deadline)
                if status is not None:
                    return status
                if self._num_signals and deadline is None:
                    deadline = time.monotonic() + self._settings.drain_timeout_s + STOP_MARGIN_S
            logger.critical("the group has failed, giving up: %r", self._failure)
            return EXIT_FAILED
        finally:
            self._server.stop()

    def _look(self, deadline: float | None) -> int | None:
        """Start due lanes, and handle one event; return the exit status at the end, else None."""
        now = time.monotonic()
        if self._watch.hangs(self._server.busy_s):
            logger.critical("the device has hung for %.1f s, giving up", self._server.busy_s)
            return EXIT_HUNG
        if self._num_signals:
            if all(lane.process is None for lane in self._lanes):
                logger.info("group stopped")
                return 0
            if deadline is not None and now > deadline:
                logger.critical("lanes have not stopped in time, giving up")
                for lane in self._lanes:
                    if lane.process is not None:
                        lane.process.kill()
                return EXIT_FAILED
        else:
            for lane in self._lanes:
                if lane.start_at is not None and lane.start_at <= now:
                    self._start(lane)
        for lane in self._lanes:
            self._kill_overdue(lane, now)
        self._watch.rests()
        try:
            event = self._events.get(timeout=_LOOK_S)
        except queue.Empty:
            return None
        if isinstance(event, _Ended):
            return self._ended(event.lane, event.status)
        if event:
            self._num_signals += 1
            for lane in self._lanes:
                if lane.process is not None:
                    lane.process.send_signal(event)
        return None

    def _run_steps(self) -> None:
        try:
            self._server.run()
        except BaseException as error:
            logger.exception("the steps failed")
            self.fail(error)

    # Lanes

    def _start(self, lane: _Lane) -> None:
        """Start a lane; where the system has no room for its process or files, it is tried again later."""
        lane.start_at = None
        lane.backoff.started(time.monotonic())
        try:
            self._launch(lane)
        except OSError as error:
            wait_s = lane.backoff.ended(time.monotonic())
            lane.start_at = time.monotonic() + wait_s
            logger.error(
                "lane %d could not be started, trying again in %.1f s: %s", lane.number, wait_s, error
            )

    def _launch(self, lane: _Lane) -> None:
        """Start a lane's process. Raises OSError."""
        assert self._memory is not None
        shape = lane.share.shape
        sizes = FlightSizes.of(shape)
        with ExitStack() as given:
            memory = SharedMemory.create(f"parakeet-lane-{lane.number}", LaneArea.num_bytes(sizes))
            given.callback(memory.close_fd)
            ours, theirs = socket.socketpair()
            given.callback(theirs.close)
            bell = Bell.create()
            fds = (theirs.fileno(), self._bell.fd, bell.fd, self._memory.fd, memory.fd)
            try:
                lane.process = subprocess.Popen(
                    [sys.executable, "-m", LANE_MODULE, ",".join(map(str, fds)), *child_argv(lane.settings)],
                    stdin=subprocess.DEVNULL,
                    env=child_environment(lane.settings),
                    pass_fds=fds,
                )
            except OSError:
                ours.close()
                raise
        facts = LaneFacts.of(self._backend, lane.share, len(self._lanes))
        lane.port = LanePort(lane.share, LaneArea(sizes, memory), ours, bell, self._bell.ring)
        lane.port.tell(facts.to_message())
        self._server.add(lane.port)
        threading.Thread(target=self._follow, args=(lane, lane.process), name="lane-end", daemon=True).start()
        logger.info("started lane %d as %s, pid %d", lane.number, lane.settings.worker_id, lane.process.pid)

    def _follow(self, lane: _Lane, process: subprocess.Popen[bytes]) -> None:
        self._events.put(_Ended(lane, process.wait()))

    def _kill_overdue(self, lane: _Lane, now: float) -> None:
        """Kill a lane that is served no more and has had the time to end, since its slots are for another."""
        if lane.process is None or lane.port is None or not lane.port.gone:
            return
        if lane.kill_at is None:
            lane.kill_at = now + HAND_OVER_S
        elif now >= lane.kill_at:
            logger.error("lane %d does not end, killing it", lane.number)
            lane.process.kill()
            lane.kill_at = math.inf  # its end comes as an event

    def _ended(self, lane: _Lane, status: int) -> int | None:
        """Handle the end of a lane: its streams go on in other lanes, and it is started again."""
        if lane.port is not None:
            self._server.remove(lane.port)
        lane.process = lane.port = lane.kill_at = None
        if self._num_signals:
            return None
        if status == EXIT_WRONG:  # it has logged the fault, and would fail again
            return EXIT_WRONG
        self._num_restarts += 1
        wait_s = lane.backoff.ended(time.monotonic())
        lane.start_at = time.monotonic() + wait_s
        logger.error("lane %d ended with status %d, restarting in %.1f s", lane.number, status, wait_s)
        return None


def share_of(
    steps: Steps,
    number: int,
    num_lanes: int,
    *,
    num_prompts: int = 1,
    words_taken: int = 0,
    num_tokens: int = 0,
) -> Share:
    """Return one lane's share of a device: slots, pages and words of the arena of boosting trees.

    words_taken: words of the arena that belong to no lane.

    Raises SettingsError where a lane would have fewer pages than one stream needs.
    """
    shape, pages = steps.shape, steps.shape.pages
    if pages.num_pages // num_lanes < pages.ring_pages:
        raise SettingsError(
            f"--lanes got {num_lanes}, but takes no more than the {pages.num_pages} pages of keys and values "
            f"(--paged-kv-max-pages) are enough for: one stream has {pages.ring_pages}."
        )
    num_slots, num_pages = shape.num_slots // num_lanes, pages.num_pages // num_lanes
    own = replace(
        shape,
        num_slots=num_slots,
        max_rows=min(shape.max_rows, num_slots),
        recording_rows=max(1, shape.recording_rows // num_lanes),
        pages=replace(pages, num_pages=max(1, num_pages)),
        overlaps=True,
    )
    num_words = (steps.trees.num_words - words_taken) // num_lanes
    return Share(
        own,
        number * num_slots,
        number * num_pages,
        pages.num_pages,
        num_prompts,
        words_taken + number * num_words,
        num_words,
        num_tokens,
    )
