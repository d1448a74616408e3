"""A Redis that stands still for longer than a lease: all leases lapse together, and no worker is dead."""

from __future__ import annotations

import asyncio
import signal
import time
from collections.abc import Sequence
from contextlib import AsyncExitStack

import pytest

from common.entries import WorkerId
from common.presence.leases import Renewal, WorkerLease
from common.redis.clients import RedisServers, SyncRedis
from common.redis.keys import Keys
from parakeet.client import Stream, connect
from tests.ingress_process import IngressProcess
from tests.stack import TIMEOUTS, Stack, check_gapless, collect, transcribe
from tests.stream_client import expected_text, noise
from tests.waiting import until

_LEASE_MS = 400


def _wait_until_lapsed(leases: list[WorkerLease]) -> None:
    while any(lease.end_ms() for lease in leases):
        time.sleep(0.01)


def test_leases_that_lapse_together_are_given_time(redis_url: str) -> None:
    redis = SyncRedis(RedisServers.parse((redis_url,)))
    first, second, third, gone = (
        WorkerLease(redis.cluster, Keys(), WorkerId(name), _LEASE_MS) for name in ("w1", "w2", "w3", "w4")
    )
    gone.renew()
    _wait_until_lapsed([gone])
    for lease in (first, second, third):
        lease.renew()
    assert first.lapsed_workers() == ["w4"]
    _wait_until_lapsed([first, second, third])
    assert first.lapsed_workers() == []  # it is no more alive than they
    assert first.renew() is Renewal.LAPSED
    assert first.lapsed_workers() == ["w4"]
    assert second.renew() is Renewal.HELD
    while third.end_ms():  # who does not come back is dead in the end
        first.renew()
        second.renew()
        time.sleep(0.01)
    assert set(first.lapsed_workers()) >= {"w3"}
    _wait_until_lapsed([first, second])
    # A process that starts under the name of a dead one says nothing of the others.
    assert first.renew(begins=True) is Renewal.LAPSED
    assert set(first.lapsed_workers()) >= {"w2", "w3"}
    third.release()
    second.release()
    second.renew()  # it had ended its lease itself
    assert "w3" in first.lapsed_workers()
    redis.close()


@pytest.mark.parametrize("pause_s", [1.5, 3.0])
async def test_living_workers_keep_their_streams_and_new_ones_are_admitted(
    own_stack: Stack, pause_s: float
) -> None:
    for name in ("w-1", "w-2", "w-3"):
        own_stack.worker(name, lease_ms=1000, redis_timeout_ms=1000)
    ingress = own_stack.ingress()
    async with AsyncExitStack() as clients:
        streams = [
            await clients.enter_async_context(await connect(ingress.tcp_url, timeouts=TIMEOUTS))
            for _ in range(6)
        ]
        await _streams_stay(own_stack, ingress, streams, pause_s)


async def _streams_stay(
    own_stack: Stack, ingress: IngressProcess, streams: Sequence[Stream], pause_s: float
) -> None:
    pcm = noise(6.0)
    part = len(pcm) // 6
    results = [asyncio.create_task(collect(stream)) for stream in streams]
    keys = [f"px:{{0}}:{stream.stream_id}:m" for stream in streams]

    def epochs() -> list[bytes | None]:
        return [own_stack.client.hget(key, "epoch") for key in keys]

    for number in range(6):
        if number in (1, 3, 5):
            await until(lambda: set(epochs()) == {b"1"}, what="owners")
            own_stack.client.execute_command("CLIENT", "PAUSE", int(pause_s * 1000), "ALL")
            newcomers = [asyncio.create_task(transcribe(ingress.tcp_url, pcm[:part])) for _ in range(3)]
        for stream in streams:
            await stream.send(pcm[number * part : (number + 1) * part])
        for newcomer in newcomers if number else ():
            assert (await newcomer)[-1].text == expected_text(pcm[:part])
    assert epochs() == [b"1"] * len(keys)
    for stream, told in zip(streams, results, strict=True):
        await stream.finish()
        check_gapless(await told)
        assert told.result()[-1].text == expected_text(pcm)


async def test_a_worker_that_dies_in_the_pause_is_replaced(own_stack: Stack) -> None:
    workers = [own_stack.worker(name, lease_ms=1000, redis_timeout_ms=1000) for name in ("w-1", "w-2")]
    ingress = own_stack.ingress()
    pcm = noise(2.0)
    async with await connect(ingress.tcp_url, timeouts=TIMEOUTS) as stream:
        told = asyncio.create_task(collect(stream))
        await stream.send(pcm[: len(pcm) // 2])
        record = f"px:{{0}}:{stream.stream_id}:m"
        await until(lambda: own_stack.client.hget(record, "owner"), what="an owner")
        owner = own_stack.client.hget(record, "owner").decode()
        own_stack.client.execute_command("CLIENT", "PAUSE", 1500, "ALL")
        workers[int(owner[-1]) - 1].send(signal.SIGKILL)
        await stream.send(pcm[len(pcm) // 2 :])
        await stream.finish()
        check_gapless(await told)
        assert told.result()[-1].text == expected_text(pcm)
