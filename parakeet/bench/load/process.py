"""One process of the load generator: its share of the streams on one event loop."""

from __future__ import annotations

import asyncio
import gc
import random
import ssl
import time
from dataclasses import dataclass
from multiprocessing.connection import Connection

from parakeet.bench.load.stream import LoadStream
from parakeet.bench.load.track import Messages, encode, load_track
from parakeet.bench.plan import Plan, Sample, Target

REPORT_EVERY_S = 1.0
MAX_TICK_MS = 2


@dataclass(frozen=True, slots=True)
class Share:
    """The streams of one process: every ``num_processes``-th, from ``index`` on."""

    index: int
    num_processes: int


class LoadProcess:
    """A timer wheel whose turn takes the time of one message; each stream is in one of its slots."""

    def __init__(self, plan: Plan, share: Share, reports: Connection) -> None:
        self._plan = plan
        self._share = share
        self._reports = reports
        self._random = random.Random(f"{plan.seed}/{share.index}")
        tick_ms = MAX_TICK_MS
        while plan.message_ms % tick_ms:
            tick_ms -= 1
        self._tick_s = tick_ms / 1000
        self._slots: list[list[LoadStream]] = [[] for _ in range(plan.message_ms // tick_ms)]
        self._finishing: set[LoadStream] = set()
        self._waiting: set[LoadStream] = set()
        self._live = 0
        self._to_start = 0
        self._sample = Sample(0.0)
        self._start_s = 0.0
        self._messages: dict[bool, Messages] = {}
        self._tls: dict[Target, ssl.SSLContext | None] = {}

    async def run(self, start_s: float) -> None:
        """Play the share; ``start_s`` is the start of all processes on the monotonic clock."""
        plan, share = self._plan, self._share
        self._start_s = start_s
        loop = asyncio.get_running_loop()
        numbers = range(share.index, plan.streams, share.num_processes)
        self._to_start = len(numbers)
        for number in numbers:
            jitter = self._random.random()
            at = start_s + plan.ramp_s * (number + jitter) / plan.streams
            loop.call_at(at - time.monotonic() + loop.time(), self._start, number)
        reporter = asyncio.create_task(self._report_regularly(), name="reports")
        await self._turn_wheel()
        reporter.cancel()
        self._report(done=True)

    # --- starting

    def prepare(self) -> None:
        """Encode the audio for each transport in use, before the trial's time begins."""
        self._tls = {target: self._plan.access.tls(target) for target in self._plan.targets}
        track = load_track(self._plan.recordings)
        for websocket in {target.websocket for target in self._plan.targets}:
            self._messages[websocket] = encode(
                track,
                message_ms=self._plan.message_ms,
                websocket=websocket,
                binary=self._plan.binary,
            )

    def _start(self, number: int) -> None:
        plan = self._plan
        if plan.stream_s:
            length_s = plan.stream_s * (0.5 + self._random.random())
            left_s = self._start_s + plan.ramp_s + plan.duration_s - time.monotonic()
            length_s = min(length_s, max(left_s, 1.0))
        else:
            length_s = plan.duration_s
        target = plan.targets[number % len(plan.targets)]
        messages = self._messages[target.websocket]
        stream = LoadStream(
            plan.access.decoder(target),
            messages,
            first_message=self._random.randrange(len(messages.audio)),
            num_messages=max(1, round(length_s * 1000 / plan.message_ms)),
            sample=lambda: self._sample,
            on_ready=self._ready,
            on_end=lambda ended: self._ended(ended, number),
        )
        self._live += 1
        self._to_start -= 1
        self._waiting.add(stream)
        asyncio.get_running_loop().create_task(self._connect(stream, target), name=f"connect-{number}")

    async def _connect(self, stream: LoadStream, target: Target) -> None:
        loop = asyncio.get_running_loop()
        try:
            async with asyncio.timeout(self._plan.connect_timeout_s):
                await loop.create_connection(
                    lambda: stream, target.host, target.port, ssl=self._tls.get(target)
                )
        except (OSError, TimeoutError):
            if not stream.ended:
                stream.fail("connect")

    def _ready(self, stream: LoadStream) -> None:
        self._waiting.discard(stream)
        # The first message is complete once its last sample has been spoken: one turn on.
        self._slots[self._slot_now()].append(stream)

    def _ended(self, stream: LoadStream, number: int) -> None:
        self._live -= 1
        self._finishing.discard(stream)
        self._waiting.discard(stream)
        plan = self._plan
        if plan.stream_s:
            now = time.monotonic()
            if now < self._start_s + plan.ramp_s + plan.duration_s - plan.stream_s / 2:
                self._to_start += 1
                asyncio.get_running_loop().call_later(0.01, self._start, number)

    # --- the wheel

    def _slot_now(self) -> int:
        return int((time.monotonic() - self._start_s) / self._tick_s) % len(self._slots)

    async def _turn_wheel(self) -> None:
        tick = int((time.monotonic() - self._start_s) / self._tick_s)
        num_slots = len(self._slots)
        next_check_s = 0.0
        while self._to_start or self._live:
            tick += 1
            due_s = self._start_s + tick * self._tick_s
            now = time.monotonic()
            if due_s > now:
                await asyncio.sleep(due_s - now)
            slot = self._slots[tick % num_slots]
            if slot:
                over = [stream for stream in slot if not stream.send_due(due_s)]
                if over:
                    gone = set(over)
                    slot[:] = [stream for stream in slot if stream not in gone]
                    self._finishing.update(s for s in over if not s.ended)
            if now > next_check_s:
                next_check_s = now + 0.5
                self._expire(now)

    def _expire(self, now: float) -> None:
        for stream in list(self._finishing):
            if now - stream.finishing_since_s > self._plan.final_timeout_s:
                stream.fail("no_final")
        for stream in list(self._waiting):
            if now - stream.opened_s > self._plan.connect_timeout_s:
                stream.fail("no_hello")

    # --- reports

    async def _report_regularly(self) -> None:
        number = 0
        while True:
            number += 1
            at = self._start_s + number * REPORT_EVERY_S
            await asyncio.sleep(max(0.0, at - time.monotonic()))
            self._report(done=False)

    def _report(self, *, done: bool) -> None:
        now = time.monotonic()
        sample, self._sample = self._sample, Sample(0.0)
        sample.at_s = now - self._start_s
        sample.live = self._live
        sample.cpu_s = time.process_time()
        sample.done = done
        self._reports.send(sample)


def play(plan: Plan, share: Share, reports: Connection) -> None:
    """Run the process: prepare, report ready, wait for the common start, play, report."""
    process = LoadProcess(plan, share, reports)
    process.prepare()
    reports.send("ready")
    start_s = reports.recv()
    gc.collect()
    gc.freeze()
    try:
        import uvloop
    except ImportError:
        asyncio.run(process.run(start_s))
    else:
        with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
            runner.run(process.run(start_s))
    reports.close()
