"""The cluster under chaos: seeded faults, a rolling restart, and a Redis that forgets; `make chaos-short`."""

from __future__ import annotations

import asyncio
import os
import signal
from pathlib import Path
from random import Random

import pytest

from tests.chaos.client import StreamLog, make_clips, run_stream
from tests.chaos.fleets.fleet import Fleet, Member
from tests.chaos.fleets.lane_fleet import LaneFleet
from tests.chaos.invariants import violations
from tests.chaos.run import Chaos
from tests.chaos.schedule import make_plan
from tests.waiting import until

pytestmark = [pytest.mark.chaos, pytest.mark.timeout(1200)]

_SEEDS = os.environ.get("PARAKEET_CHAOS_SEEDS", "0:6")
_NUM_CLIPS = 6


async def test_seeded_faults_break_no_promise(tmp_path: Path) -> None:
    first, end = (int(text) for text in _SEEDS.split(":"))
    async with Fleet(tmp_path) as fleet:
        chaos = Chaos(fleet, make_clips(_NUM_CLIPS))
        await chaos.prepare()
        for seed in range(first, end):
            report = await chaos.run(make_plan(seed, _NUM_CLIPS, len(fleet.urls)))
            assert not report.violations, report.describe()
        assert await chaos.no_keys_left() == []


async def test_seeded_faults_break_no_promise_with_lanes(tmp_path: Path) -> None:
    async with LaneFleet(tmp_path) as fleet:
        chaos = Chaos(fleet, make_clips(_NUM_CLIPS))
        await chaos.prepare()
        for seed in (0, 2, 6):  # among others a lane that lies, a device that hangs, a lane that is misled
            report = await chaos.run(make_plan(seed, _NUM_CLIPS, len(fleet.urls), lanes=True))
            assert not report.violations, report.describe()
        assert await chaos.no_keys_left() == []


async def _replace(fleet: Fleet, member: Member) -> None:
    """Tell a process to stop, and wait until it has, in order, and another has taken its place."""
    old, ends = member.name, len(member.exits)
    assert member.send(signal.SIGTERM)
    await until(lambda: len(member.exits) > ends, 120.0, f"the end of {old}")
    assert member.exits[-1] == 0, fleet.log_of(old)
    await until(lambda: member.pid and member.name != old, what="its successor")
    await fleet.all_up()


async def test_a_rolling_restart_of_everything_loses_no_final(tmp_path: Path) -> None:
    """Every worker and every ingress is stopped and replaced, one after the other, under load."""
    async with Fleet(tmp_path, num_workers=2) as fleet:
        clips = make_clips(_NUM_CLIPS)
        chaos = Chaos(fleet, clips)
        await chaos.prepare()
        replaced = asyncio.Event()
        logs: list[StreamLog] = []

        async def client(number: int) -> None:
            random = Random(number)
            while not replaced.is_set():
                clip = random.choice(clips)
                urls = fleet.urls
                at = random.randrange(len(urls))
                logs.append(await run_stream(clip, urls[at:] + urls[:at], random, 4.0, 0.0))

        async with asyncio.TaskGroup() as tasks:
            for number in range(6):
                tasks.create_task(client(number))
            for member in (*fleet.workers, *fleet.ingresses):
                await _replace(fleet, member)
            replaced.set()
        broken = [
            (log.stream_id, what)
            for log in logs
            for what in violations(log, chaos.undisturbed[log.clip.number])
        ]
        assert not broken
        assert sum(log.num_resumptions for log in logs) > 0
        assert await chaos.no_keys_left() == []


async def test_a_redis_that_comes_back_empty_ends_its_streams_with_an_error(tmp_path: Path) -> None:
    """Without persistence a restart takes the streams along: clients are told, and new ones are served."""
    async with Fleet(tmp_path, num_workers=1, num_ingresses=1, persistent=False) as fleet:
        clips = make_clips(4)
        chaos = Chaos(fleet, clips)
        await chaos.prepare()
        running = [
            asyncio.create_task(run_stream(clip, fleet.urls, Random(clip.number), 1.5, 0.0)) for clip in clips
        ]
        await until(lambda: len(fleet.client.zrange("px:{0}:adm", 0, -1)) == len(clips), what="streams")
        await until(lambda: _num_with_results(fleet) == len(clips), what="results")
        await fleet.restart_redis(signal.SIGKILL)
        logs = await asyncio.wait_for(asyncio.gather(*running), 300.0)
        for log in logs:
            assert log.failure is not None
            assert log.failure.split(": ")[1] in ("stream_lost", "resume_refused"), log.failure
        await fleet.all_up()
        assert all(not member.exits for member in (*fleet.workers, *fleet.ingresses))
        again = await run_stream(clips[0], fleet.urls, Random(9), 8.0, 0.0)
        assert violations(again, chaos.undisturbed[0]) == []
        assert await chaos.no_keys_left() == []


def _num_with_results(fleet: Fleet) -> int:
    """Streams that are admitted and have results; those of earlier ones are kept for a while."""
    admitted = fleet.client.zrange("px:{0}:adm", 0, -1)
    return sum(fleet.client.xlen(b"px:{0}:%b:r" % stream) > 2 for stream in admitted)


@pytest.mark.parametrize("outage", ["restart", "kill", "pause", "cut", "full"])
async def test_an_outage_of_redis_costs_a_pause_and_nothing_else(tmp_path: Path, outage: str) -> None:
    """With its append-only file it comes back as it was; full, it takes nothing for a while."""
    async with Fleet(tmp_path, num_workers=1, num_ingresses=1) as fleet:
        clips = make_clips(4)
        chaos = Chaos(fleet, clips)
        await chaos.prepare()
        running = [
            asyncio.create_task(run_stream(clip, fleet.urls, Random(clip.number), 3.0, 0.0)) for clip in clips
        ]
        await until(lambda: _num_live_with_results(fleet) == len(clips), what="results")
        match outage:
            case "restart":
                await fleet.restart_redis(signal.SIGTERM)
            case "kill":
                await fleet.restart_redis(signal.SIGKILL)
            case "pause":
                await fleet.pause_redis(3.0)
            case "cut":
                for _ in range(3):
                    assert sum(proxy.cut() for proxy in fleet.proxies) > 0
                    await until(lambda: all(proxy.num_connections for proxy in fleet.proxies), what="links")
            case "full":
                most = fleet.client.config_get("maxmemory")["maxmemory"]
                fleet.client.config_set("maxmemory", 1)
                refused = _num_refused(fleet)
                await until(lambda: _num_refused(fleet) > refused + 5, what="refusals")
                fleet.client.config_set("maxmemory", most)
        logs = await asyncio.wait_for(asyncio.gather(*running), 300.0)
        broken = [what for log in logs for what in violations(log, chaos.undisturbed[log.clip.number])]
        assert broken == []
        assert all(not member.exits for member in (*fleet.workers, *fleet.ingresses))


def _num_refused(fleet: Fleet) -> int:
    """Commands that Redis refused because it was full."""
    return int(fleet.client.info("errorstats").get("errorstat_OOM", {"count": 0})["count"])


def _num_live_with_results(fleet: Fleet) -> int:
    """Streams that have had results and have not ended; their audio is there."""
    live = [key.replace(b":a", b":r") for key in fleet.client.scan_iter(match="px:{0}:*:a")]
    return sum(fleet.client.xlen(key) > 2 for key in live)
