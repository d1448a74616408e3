"""Groups of lanes: each lane is a worker to its cluster, and whichever process dies costs no word."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import time
from collections.abc import Iterator
from contextlib import ExitStack, suppress
from pathlib import Path
from typing import Any
from urllib.error import HTTPError
from urllib.request import urlopen

import pytest

from common.entries import WorkerId
from tests.group_process import GroupProcess
from tests.integration.workers.test_takeover import assert_gapless, finish, halfway, worker
from tests.ports import ports_in_a_row
from tests.servers import raw_client
from tests.stream_client import ClientStream, expected_text, ingress_side, noise
from tests.waiting import until, wait_until
from tests.worker_process import SHORT_LEASE_MS

pytestmark = pytest.mark.one_server

# Of the group below, whose lanes have 12 slots each: so many streams need both.
MORE_THAN_A_LANE = 14


@pytest.fixture
def lease_ms() -> int:
    return 30_000


@pytest.fixture
def group(redis_url: str, tmp_path: Path, lease_ms: int) -> Iterator[GroupProcess]:
    flags = {"worker_max_streams": 24, "lease_ms": lease_ms}
    with GroupProcess(redis_url, "g1", tmp_path / "g1.log", **flags) as process:
        pids = process.ready(raw_client(redis_url)).lane_pids
        yield process
    for pid in pids.values():  # a lane never outlives its group
        wait_until(lambda pid=pid: not runs(pid), what=f"the end of lane {pid}")  # type: ignore[misc]


def runs(pid: int) -> bool:
    with suppress(ProcessLookupError, FileNotFoundError):
        os.kill(pid, 0)
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    return False


def hold_leases(client: Any, group: GroupProcess) -> bool:
    expiries = [client.zscore("px:{0}:workers", name) or 0 for name in group.lane_names]
    return min(expiries) > 1000 * time.time()


def owners(streams: list[ClientStream]) -> set[str]:
    return {str(stream.worker) for stream in streams}


async def test_streams_are_spread_over_lanes_and_say_what_a_worker_says(
    redis_url: str, group: GroupProcess
) -> None:
    pcm = noise(4.0)
    async with ingress_side(redis_url) as ingress:
        streams = await halfway(ingress, pcm, count=MORE_THAN_A_LANE)
        assert owners(streams) == {"g1-l0", "g1-l1"}
        await finish(ingress, streams, pcm)
        for stream in streams:
            assert_gapless(stream)
            assert stream.text == expected_text(pcm)


async def test_a_lane_that_dies_is_started_again_and_the_other_goes_on(
    redis_url: str, group: GroupProcess
) -> None:
    pcm, client = noise(4.0), raw_client(redis_url)
    async with ingress_side(redis_url) as ingress:
        streams = await halfway(ingress, pcm, count=MORE_THAN_A_LANE)
        undisturbed = [stream for stream in streams if stream.worker == "g1-l1"]
        assert 0 < len(undisturbed) < MORE_THAN_A_LANE
        dead = group.send_lane("g1-l0", signal.SIGKILL)
        await finish(ingress, streams, pcm)
        for stream in streams:
            assert_gapless(stream)
            assert stream.text == expected_text(pcm)
        assert {stream.epoch for stream in undisturbed} == {1}
        for stream in streams:
            await ingress.admission.release(stream.stream)
        await until(lambda: group.lane_pids.get("g1-l0") not in (None, dead), what="another lane 0")
        await until(lambda: group.log_text().count("worker ready") == 3, 120, "lane 0's service")
        await until(lambda: hold_leases(client, group), what="both leases")
        again = await halfway(ingress, pcm, count=MORE_THAN_A_LANE)
        assert owners(again) == {"g1-l0", "g1-l1"}
        await finish(ingress, again, pcm)
        assert [stream.text for stream in again] == [expected_text(pcm)] * MORE_THAN_A_LANE


@pytest.mark.parametrize("lease_ms", [SHORT_LEASE_MS])
async def test_a_lane_that_is_frozen_holds_nobody_up_and_comes_back(
    redis_url: str, group: GroupProcess
) -> None:
    pcm = noise(4.0)
    async with ingress_side(redis_url) as ingress:
        streams = await halfway(ingress, pcm, count=6)
        frozen = group.send_lane("g1-l0", signal.SIGSTOP)
        await finish(ingress, streams, pcm)  # its streams go on in the other lane when its lease has lapsed
        assert owners(streams) == {"g1-l1"}
        os.kill(frozen, signal.SIGCONT)
        await until(lambda: hold_leases(raw_client(redis_url), group), what="both leases")
        for stream in streams:
            assert_gapless(stream)
            assert stream.text == expected_text(pcm)
        again = await halfway(ingress, pcm, count=MORE_THAN_A_LANE)
        assert owners(again) == {"g1-l0", "g1-l1"}
        await finish(ingress, again, pcm)
        assert [stream.text for stream in again] == [expected_text(pcm)] * MORE_THAN_A_LANE


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGSEGV])
async def test_when_the_group_dies_its_streams_go_on_elsewhere_at_once(
    redis_url: str, tmp_path: Path, number: signal.Signals
) -> None:
    pcm, client = noise(4.0), raw_client(redis_url)
    with ExitStack() as stack:
        flags = {"worker_max_streams": 12, "lease_ms": 600_000}
        group = stack.enter_context(GroupProcess(redis_url, "g1", tmp_path / "g1.log", **flags))
        async with ingress_side(redis_url) as ingress:
            await asyncio.to_thread(group.ready, client)
            streams = await halfway(ingress, pcm, count=6)
            pids = group.lane_pids
            await worker(stack, redis_url, tmp_path, "w2")
            group.send(number)
            # The leases would hold for ten minutes; the lanes give them back.
            await finish(ingress, streams, pcm)
            for stream in streams:
                assert_gapless(stream)
                assert stream.text == expected_text(pcm)
                assert stream.worker == WorkerId("w2")
            await until(lambda: not any(map(runs, pids.values())), what="the end of all lanes")


@pytest.mark.parametrize("how", ["dies", "hangs", "is frozen"])
async def test_when_the_group_ends_nobody_is_a_suspect_whom_it_had_no_step_of(
    redis_url: str, tmp_path: Path, how: str
) -> None:
    pcm, client = noise(1.0), raw_client(redis_url)
    port = ports_in_a_row(3)
    with ExitStack() as stack:
        flags = {"worker_max_streams": 4, "null_step_ms": 60_000, "metrics_port": port}
        # Long enough for all that comes before it.
        flags["step_timeout_ms"] = 60_000 if how == "dies" else 15_000
        group = stack.enter_context(GroupProcess(redis_url, "g1", tmp_path / "g1.log", **flags))
        async with ingress_side(redis_url) as ingress:
            await asyncio.to_thread(group.ready, client)
            streams = [await ingress.open() for _ in range(4)]
            await until(lambda: None not in {stream.worker for stream in streams}, what="owners")
            first = {stream.worker: stream for stream in streams}
            for stream in first.values():
                stream.append(pcm)
            for lane in range(len(first)):
                await until(lambda lane=lane: steps_begun(port + 1 + lane) == 1, what="a step")  # type: ignore[misc]
            bystanders = [stream for stream in streams if stream not in first.values()]
            for stream in bystanders:
                stream.append(pcm)
            await until(
                lambda: all(client.xpending(stream.keys.audio, "asr-1")["pending"] for stream in streams)
            )
            lanes = group.lane_pids
            await worker(stack, redis_url, tmp_path, "w2")
            if how == "dies":
                group.send(signal.SIGKILL)
            elif how == "is frozen":  # its lanes see for themselves that it hangs
                group.send(signal.SIGSTOP)
                await until(lambda: not any(map(runs, lanes.values())), 120, "the end of both lanes")
                group.send(signal.SIGKILL)
            else:
                assert await asyncio.to_thread(group.wait, 120) == 70
            await finish(ingress, streams, pcm * 2)
            deaths = {stream.stream: client.hget(stream.keys.meta, "deaths") for stream in streams}
            # The device has one step; the rows of the other lane are in it, or wait for the next one.
            assert b"1" in {deaths[stream.stream] for stream in first.values()} <= {b"1", None}
            assert {deaths[stream.stream] for stream in bystanders} == {None}
            if how == "dies":
                assert "failed, giving up: GroupLost" in group.log_text()


def steps_begun(port: int) -> int:
    """Steps of the lane that shows its metrics there."""
    with urlopen(f"http://127.0.0.1:{port}/metrics", timeout=60) as answer:
        lines = answer.read().decode().splitlines()
    return sum(int(float(line.split()[-1])) for line in lines if "_step_streams_count" in line)


async def test_a_device_that_hangs_ends_its_group(redis_url: str, tmp_path: Path) -> None:
    pcm = noise(4.0)
    with ExitStack() as stack:
        flags = {"null_step_ms": 60_000, "step_timeout_ms": 1_000}
        group = stack.enter_context(GroupProcess(redis_url, "g1", tmp_path / "g1.log", **flags))
        async with ingress_side(redis_url) as ingress:
            await asyncio.to_thread(group.ready, raw_client(redis_url))
            streams = [await ingress.open() for _ in range(2)]
            for stream in streams:
                stream.append(pcm[: len(pcm) // 2])
            assert await asyncio.to_thread(group.wait, 120) == 70
            assert "the device has hung for" in group.log_text()
            await worker(stack, redis_url, tmp_path, "w2")
            await finish(ingress, streams, pcm)
            assert [stream.text for stream in streams] == [expected_text(pcm)] * 2


async def test_a_group_that_was_suspended_in_the_midst_of_a_step_goes_on(
    redis_url: str, tmp_path: Path
) -> None:
    """With its lanes, as a paused container is: for longer than a step may take."""
    pcm = noise(4.0)
    flags = {"null_step_ms": 600, "step_timeout_ms": 1_500}
    with GroupProcess(redis_url, "g1", tmp_path / "g1.log", **flags) as group:
        async with ingress_side(redis_url) as ingress:
            await asyncio.to_thread(group.ready, raw_client(redis_url))
            streams = await halfway(ingress, pcm, count=2)
            for stream in streams:
                stream.append(pcm[len(pcm) // 2 : len(pcm) // 2 + 5_120])
            pids = [*group.lane_pids.values(), group.pid]
            for pid in pids:
                os.kill(pid, signal.SIGSTOP)
            await asyncio.sleep(2.5)  # what is tested
            for pid in reversed(pids):
                os.kill(pid, signal.SIGCONT)
            for stream in streams:
                stream.append(pcm[len(pcm) // 2 + 5_120 :], final=True)
            await ingress.ended(*streams)
            assert [stream.text for stream in streams] == [expected_text(pcm)] * 2
            assert [*group.lane_pids.values(), group.pid] == pids


async def test_a_group_that_is_told_to_stop_lets_its_streams_end(redis_url: str, group: GroupProcess) -> None:
    pcm = noise(4.0)
    async with ingress_side(redis_url) as ingress:
        streams = await halfway(ingress, pcm, count=6)
        group.send(signal.SIGTERM)
        await finish(ingress, streams, pcm)
        assert [stream.text for stream in streams] == [expected_text(pcm)] * 6
        assert {stream.epoch for stream in streams} == {1}
        assert await asyncio.to_thread(group.wait, 120) == 0
        assert "group stopped" in group.log_text()
    assert raw_client(redis_url).zcard("px:{0}:workers") == 0


async def test_what_is_left_of_a_group_that_stops_is_handed_over(redis_url: str, tmp_path: Path) -> None:
    pcm = noise(4.0)
    with ExitStack() as stack:
        flags: dict[str, Any] = {"worker_max_streams": 12, "drain_timeout_s": 0.2}
        group = stack.enter_context(GroupProcess(redis_url, "g1", tmp_path / "g1.log", **flags))
        async with ingress_side(redis_url) as ingress:
            await asyncio.to_thread(group.ready, raw_client(redis_url))
            streams = await halfway(ingress, pcm, count=6)
            group.send(signal.SIGTERM)
            assert await asyncio.to_thread(group.wait, 120) == 0
            await worker(stack, redis_url, tmp_path, "w2")
            await finish(ingress, streams, pcm)
            for stream in streams:
                assert_gapless(stream)
                assert stream.text == expected_text(pcm)
                assert stream.epoch > 1


async def test_a_lane_that_hands_over_while_its_group_dies_gives_up_at_once(
    redis_url: str, tmp_path: Path
) -> None:
    pcm = noise(4.0)
    with ExitStack() as stack:
        flags: dict[str, Any] = {"worker_max_streams": 12, "drain_timeout_s": 0.2, "lease_ms": 600_000}
        flags["step_timeout_ms"] = 600_000  # nothing else ends them
        group = stack.enter_context(GroupProcess(redis_url, "g1", tmp_path / "g1.log", **flags))
        async with ingress_side(redis_url) as ingress:
            await asyncio.to_thread(group.ready, raw_client(redis_url))
            streams = await halfway(ingress, pcm, count=6)
            await worker(stack, redis_url, tmp_path, "w2")
            group.send(signal.SIGSTOP)
            for stream in streams:
                stream.append(pcm[len(pcm) // 2 :], final=True)
            lanes = [group.send_lane(name, signal.SIGTERM) for name in group.lane_names]
            await until(lambda: group.log_text().count("draining: ") == 2, what="lanes that stop")
            group.send(signal.SIGKILL)
            await until(lambda: not any(map(runs, lanes)), what="the end of both lanes")
            await ingress.ended(*streams)
            for stream in streams:
                assert_gapless(stream)
                assert stream.text == expected_text(pcm)


async def test_snapshots_of_lanes_fit_workers_and_those_of_workers_fit_lanes(
    redis_url: str, tmp_path: Path
) -> None:
    client, pcm = raw_client(redis_url), noise(40.0)
    with ExitStack() as stack:
        flags = {"replay_seconds": 10, "worker_max_streams": 12}
        last = await worker(stack, redis_url, tmp_path, "w1", **flags, lease_ms=SHORT_LEASE_MS)
        async with ingress_side(redis_url) as ingress:
            (stream,) = await halfway(ingress, pcm, count=1)
            await until(lambda: client.hget(stream.keys.meta, "ck_samples"), what="a snapshot")
            group = stack.enter_context(GroupProcess(redis_url, "g1", tmp_path / "g1.log", **flags))
            await asyncio.to_thread(group.ready, client)
            last.send(signal.SIGKILL)
            await until(lambda: str(stream.worker).startswith("g1-l"), what="a lane that goes on")
            await worker(stack, redis_url, tmp_path, "w2", **flags)
            group.send(signal.SIGKILL)
            await finish(ingress, [stream], pcm)
            assert_gapless(stream)
            assert stream.text == expected_text(pcm)
            assert "without its snapshot" not in (tmp_path / "w2.log").read_text() + group.log_text()


def probe(port: int, path: str) -> tuple[int, list[str]]:
    """Status, and reasons of a probe that fails."""
    try:
        with urlopen(f"http://127.0.0.1:{port}{path}", timeout=60) as answer:
            return int(answer.status), []
    except HTTPError as error:
        return error.code, json.load(error)["reasons"]
    except OSError:
        return 0, []


def test_a_groups_port_tells_of_all_of_its_lanes(redis_url: str, tmp_path: Path) -> None:
    port, client = ports_in_a_row(3), raw_client(redis_url)
    flags = {"metrics_port": port, "worker_max_streams": 4}
    with GroupProcess(redis_url, "g1", tmp_path / "g1.log", **flags) as group:
        group.ready(client)
        for at in range(3):
            wait_until(lambda at=at: probe(port + at, "/readyz") == (200, []), 120, "a port that is ready")  # type: ignore[misc]
        assert probe(port, "/startupz") == (200, [])
        wait_until(lambda: probe(port, "/livez") == (200, []), 120, "a group that is alive")
        with urlopen(f"http://127.0.0.1:{port}/metrics", timeout=60) as answer:
            assert b"\nparakeet_group_lanes 2.0\n" in answer.read()
        frozen = group.send_lane("g1-l1", signal.SIGSTOP)
        wait_until(lambda: "lane 1: no answer" in probe(port, "/livez")[1], 120, "a lane that is missed")
        wait_until(lambda: "lane 1: no answer" in probe(port, "/readyz")[1], 120, "a lane that is missed")
        os.kill(frozen, signal.SIGCONT)
        wait_until(lambda: probe(port, "/readyz") == (200, []), 120, "a lane that is back")
        group.send_lane("g1-l0", signal.SIGKILL)
        wait_until(lambda: "lane 0 ended with status -9" in group.log_text(), 120, "a lane's end")
        assert not any("lane 0" in why for why in probe(port, "/livez")[1]), "the group starts it again"
        wait_until(lambda: probe(port, "/readyz") == (200, []), 120, "another lane 0")
        with urlopen(f"http://127.0.0.1:{port}/metrics", timeout=60) as answer:
            assert b"\nparakeet_group_lane_restarts_total 1.0\n" in answer.read()


def test_a_lane_that_cannot_join_ends_the_group_with_its_sentence(redis_url: str, tmp_path: Path) -> None:
    with GroupProcess(redis_url, "g1", tmp_path / "g1.log", chunk_ms=160) as first:
        first.ready(raw_client(redis_url))
        with GroupProcess(redis_url, "g2", tmp_path / "g2.log", chunk_ms=320) as other:
            assert other.wait(120) == 2
            assert "chunk" in other.log_text()
