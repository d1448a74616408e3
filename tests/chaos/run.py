"""One run: the streams of a plan against the faults of a plan, then every promise checked."""

from __future__ import annotations

import asyncio
import signal
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from random import Random
from typing import Final

from tests.chaos.client import Clip, StreamLog, run_stream
from tests.chaos.fleets.fleet import Fleet, Member
from tests.chaos.invariants import violations
from tests.chaos.schedule import Fault, Plan, PlannedFault, PlannedStream
from tests.servers import keys_of_streams, keys_without_expiry
from tests.waiting import until

# A finished stream's keys live for 30 s, those that nobody renews for --stream-ttl-s.
KEYS_GONE_S: Final = 90.0


@dataclass(slots=True)
class RunReport:
    """What a run showed. violations: (stream id, promise broken)."""

    plan: Plan
    logs: list[StreamLog] = field(default_factory=list)
    violations: list[tuple[int, str]] = field(default_factory=list)
    done: list[str] = field(default_factory=list)
    seconds: float = 0.0

    @property
    def num_resumptions(self) -> int:
        return sum(log.num_resumptions for log in self.logs)

    @property
    def num_samples(self) -> int:
        return sum(log.clip.num_samples for log in self.logs)

    def describe(self) -> str:
        """For a failed assertion: the plan, what was done, and what broke."""
        lines = [f"seed {self.plan.seed}, {len(self.logs)} streams, {self.seconds:.1f} s"]
        lines += [f"  done {what}" for what in self.done]
        lines += [f"  stream {stream}: {what}" for stream, what in self.violations]
        for log in self.logs:
            if any(log.stream_id == stream for stream, _ in self.violations):
                contacts = [
                    (contact.url, contact.last_seq, contact.resumed_at, len(contact.received))
                    for contact in log.contacts
                ]
                lines.append(f"  stream {log.stream_id}: {contacts} {log.refusals}")
        return "\n".join(lines)


class Chaos:
    """Runs plans against one fleet, which is whole again before the next."""

    def __init__(self, fleet: Fleet, clips: Sequence[Clip]) -> None:
        self.fleet = fleet
        self.clips = clips
        self.undisturbed: dict[int, StreamLog] = {}

    async def prepare(self) -> None:
        """Learn what each clip gives when nothing goes wrong."""
        logs = await asyncio.gather(
            *(run_stream(clip, self.fleet.urls, Random(0), 16.0, 0.0) for clip in self.clips)
        )
        for log in logs:
            broken = [log.failure] if log.failure else violations(log, log)
            assert not broken, f"the undisturbed run: {broken}"
            assert log.num_resumptions == 0
            self.undisturbed[log.clip.number] = log

    async def run(self, plan: Plan) -> RunReport:
        """Run a plan; return what broke."""
        await self.fleet.all_up()
        report = RunReport(plan)
        started = time.monotonic()
        faults = asyncio.create_task(self._disturb(plan, report, started), name="faults")
        report.logs = list(await asyncio.gather(*(self._stream(stream) for stream in plan.streams)))
        await faults
        report.seconds = time.monotonic() - started
        for log in report.logs:
            report.violations += [
                (log.stream_id, what) for what in violations(log, self.undisturbed[log.clip.number])
            ]
        for name in keys_without_expiry(self.fleet.client):
            report.violations.append((0, f"{name} has no time to live"))
        return report

    async def no_keys_left(self) -> list[str]:
        """Wait until Redis has forgotten all streams; return what it has not forgotten in time."""
        client = self.fleet.client

        def left() -> list[str]:
            names = keys_of_streams(client)
            now_ms = int(client.time()[0]) * 1000
            # Lapsed admissions count for nothing; the next one admitted sweeps them away.
            held = client.zrangebyscore("px:{0}:adm", now_ms, "+inf")
            names += [f"admission {stream.decode()}" for stream in held]
            names += [f"assignment {entry_id.decode()}" for entry_id, _ in client.xrange("px:{0}:new")]
            return names

        try:
            await until(lambda: not left(), KEYS_GONE_S, "an empty Redis")
        except AssertionError:
            return left()
        return []

    async def _stream(self, planned: PlannedStream) -> StreamLog:
        urls = self.fleet.urls
        urls = urls[planned.url :] + urls[: planned.url]
        clip = self.clips[planned.clip]
        return await run_stream(clip, urls, Random(planned.seed), planned.speed, planned.delay_s)

    # Faults

    async def _disturb(self, plan: Plan, report: RunReport, started: float) -> None:
        async with asyncio.TaskGroup() as tasks:
            for planned in plan.faults:
                await asyncio.sleep(max(0.0, started + planned.at_s - time.monotonic()))
                report.done.append(f"at {time.monotonic() - started:.2f} s, {planned}")
                tasks.create_task(self._inflict(planned), name=planned.fault.value)

    async def _inflict(self, planned: PlannedFault) -> None:
        fleet, seconds = self.fleet, planned.seconds
        workers, ingresses = fleet.proxies
        match planned.fault:
            case Fault.KILL_WORKER:
                self._victim(fleet.workers, planned).send(signal.SIGKILL)
            case Fault.FREEZE_WORKER:
                await self._freeze(self._victim(fleet.workers, planned), 1.0 + seconds)
            case Fault.STOP_WORKER:
                self._victim(fleet.workers, planned).send(signal.SIGTERM)
            case Fault.KILL_INGRESS:
                self._victim(fleet.ingresses, planned).send(signal.SIGKILL)
            case Fault.STOP_INGRESS:
                self._victim(fleet.ingresses, planned).send(signal.SIGTERM)
            case Fault.CUT_WORKERS:
                workers.cut()
            case Fault.CUT_INGRESSES:
                ingresses.cut()
            case Fault.CUT_SUBSCRIPTIONS:
                ingresses.cut_subscriptions()
            case Fault.DEAFEN_WORKERS:
                await workers.deafen(seconds / 3)
            case Fault.DEAFEN_INGRESSES:
                await ingresses.deafen(seconds / 3)
            case Fault.FREEZE_LINK:
                await fleet.proxies[planned.choice % 2].freeze(seconds)
            case Fault.DELAY_LINK:
                await fleet.proxies[planned.choice % 2].delay(0.05, seconds)
            case Fault.PAUSE_REDIS:
                await fleet.pause_redis(seconds / 2)
            case Fault.RESTART_REDIS:
                await fleet.restart_redis(signal.SIGTERM)
            case Fault.KILL_REDIS:
                await fleet.restart_redis(signal.SIGKILL)
            case Fault.HANG_GROUP:
                group = self._victim(fleet.groups, planned)
                group.frozen = group.send(signal.SIGUSR1)  # nothing more for it: it ends by itself
            case Fault.MISLEAD_LANE:
                self._victim(fleet.lanes, planned).send(signal.SIGUSR1)
            case Fault.LYING_LANE:
                self._victim(fleet.lanes, planned).send(signal.SIGUSR2)

    def _victim(self, members: Sequence[Member], planned: PlannedFault) -> Member:
        """The chosen process, or the next one that a fault may meet; nobody where there is none."""
        for step in range(len(members)):
            member = members[(planned.choice + step) % len(members)]
            if self.fleet.may_meet(member):
                return member
        return Member("nobody")

    @staticmethod
    async def _freeze(member: Member, seconds: float) -> None:
        pid = member.pid
        if member.send(signal.SIGSTOP):
            member.frozen = True
            await asyncio.sleep(seconds)
            if member.pid == pid:
                member.frozen = False
                member.send(signal.SIGCONT)
