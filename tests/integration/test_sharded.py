"""The whole path over several Redis servers: real processes on real servers."""

from __future__ import annotations

import asyncio
import signal
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest

from common.messages import Result
from common.presence.status import read_status
from common.redis.clients import AsyncRedis, RedisServers, SyncRedis
from common.redis.keys import Keys
from parakeet.client import ClientTimeouts, connect
from tests.ingress_process import IngressProcess
from tests.servers import SERVER_KINDS, make_server
from tests.stream_client import expected_text, noise
from tests.waiting import until
from tests.worker_process import WorkerProcess

_TIMEOUTS = ClientTimeouts(connect_s=5, silence_s=10, final_s=20, resume_s=20, send_s=20)
_NUM_STREAMS = 9


class Sharded:
    """Servers that share the streams, and processes on them.

    url: as given to --redis-url.   shards: as given to --redis-shards.
    """

    def __init__(self, url: str, shards: int, folder: Path, processes: ExitStack) -> None:
        self.url = url
        self.shards = shards
        self.servers = RedisServers.parse(tuple(part for part in url.split("+++")), shards, timeout_ms=3000)
        self.redis = SyncRedis(self.servers)
        self._folder = folder
        self._processes = processes

    @property
    def variable(self) -> str:
        return self.url.replace("+++", ",")

    def command(self, shard: int, *words: str | bytes | int) -> Any:
        return self.redis.shard(shard).execute_command(*words)

    def worker(self, name: str) -> WorkerProcess:
        process = WorkerProcess(
            self.variable, name, self._folder / f"{name}.log", redis_shards=self.shards, worker_max_streams=6
        )
        self._processes.enter_context(process)
        return process.ready(_Shard0(self.redis))

    def ingress(self, name: str) -> IngressProcess:
        process = IngressProcess(
            self.variable, name, self._folder / f"{name}.log", redis_shards=self.shards, max_num_streams=50
        )
        self._processes.enter_context(process)
        return process.ready(_Shard0(self.redis))

    def stream_keys(self, shard: int, kinds: str = "mars") -> list[bytes]:
        """Keys of streams on the server of a shard."""
        found: list[bytes] = self.command(shard, "KEYS", f"px:{{*}}:*:[{kinds}]")
        return found


class _Shard0:
    """What the process fixtures ask of a client, asked of the server of shard 0."""

    def __init__(self, redis: SyncRedis) -> None:
        self._redis = redis

    def zscore(self, key: str, member: str) -> Any:
        score = self._redis.cluster.execute_command("ZSCORE", key, member)
        return None if score is None else float(score)

    def exists(self, key: str) -> Any:
        return self._redis.cluster.execute_command("EXISTS", key)

    def hgetall(self, key: str) -> Any:
        flat = self._redis.cluster.execute_command("HGETALL", key)
        return dict(zip(flat[::2], flat[1::2], strict=True))


@pytest.fixture
def sharded(tmp_path: Path) -> Iterator[Sharded]:
    with ExitStack() as stack:
        kinds = (SERVER_KINDS[0], SERVER_KINDS[-1], SERVER_KINDS[0])
        servers = [stack.enter_context(make_server(kind)) for kind in kinds]
        url, shards = "+++".join(server.url for server in servers), 3
        processes = stack.enter_context(ExitStack())
        made = Sharded(url, shards, tmp_path, processes)
        stack.callback(made.redis.close)
        yield made


async def stream(url: str, pcm: bytes, *, pause_s: float = 0.0) -> list[Result]:
    """Send audio and collect the results."""
    async with await connect(url, timeouts=_TIMEOUTS) as opened:

        async def collect() -> list[Result]:
            return [result async for result in opened.results()]

        async with asyncio.TaskGroup() as tasks:
            collecting = tasks.create_task(collect())
            for at in range(0, len(pcm), 5120):
                await opened.send(pcm[at : at + 5120])
                await asyncio.sleep(pause_s)
            await opened.finish()
        return collecting.result()


def check(results: list[Result], pcm: bytes) -> None:
    assert [result.seq for result in results] == list(range(1, len(results) + 1))
    assert results[-1].is_final
    assert results[-1].text == expected_text(pcm)


async def test_streams_are_spread_and_status_adds_them_up(sharded: Sharded) -> None:
    sharded.worker("w-1")
    sharded.worker("w-2")
    ingresses = [sharded.ingress("i-1"), sharded.ingress("i-2")]
    audio = [noise(4.0, seed=index) for index in range(_NUM_STREAMS)]
    client = AsyncRedis(sharded.servers)
    try:
        async with asyncio.TaskGroup() as tasks:
            runs = [
                tasks.create_task(stream(ingresses[index % 2].ws_url, pcm, pause_s=0.1))
                for index, pcm in enumerate(audio)
            ]

            async with asyncio.timeout(10):
                while True:
                    status: Any = await read_status(client, Keys(sharded.shards))
                    counts = (status["connected_streams"], status["scheduler"]["active"])
                    if counts == (_NUM_STREAMS, _NUM_STREAMS):
                        break
            held = [
                len(sharded.command(shard, "XRANGE", f"px:{{{shard}}}:new", "-", "+"))
                for shard in range(sharded.shards)
            ]
            assert sum(held) == _NUM_STREAMS
            assert min(held) >= 1, "every shard has streams"
        for pcm, run in zip(audio, runs, strict=True):
            check(run.result(), pcm)
        # Record and results stay a while, for clients that may come back.
        await until(
            lambda: not any(sharded.stream_keys(shard, "as") for shard in range(sharded.shards)),
            what="the end of all audio and snapshots",
        )
    finally:
        await client.close()


async def test_a_worker_takes_over_on_every_shard(sharded: Sharded) -> None:
    first = sharded.worker("w-1")
    ingress = sharded.ingress("i-1")
    audio = [noise(5.0, seed=index) for index in range(6)]
    async with asyncio.TaskGroup() as tasks:
        runs = [tasks.create_task(stream(ingress.ws_url, pcm, pause_s=0.12)) for pcm in audio]
        await until(
            lambda: all(len(sharded.stream_keys(shard)) >= 3 for shard in range(sharded.shards)),
            what="results on every shard",
        )
        sharded.worker("w-2")
        first.send(signal.SIGKILL)
    for pcm, run in zip(audio, runs, strict=True):
        check(run.result(), pcm)
