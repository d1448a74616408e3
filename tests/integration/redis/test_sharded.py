"""The whole path over several Redis servers: real processes on real servers."""

from __future__ import annotations

import asyncio
import json
import signal
from collections.abc import AsyncIterator, Iterator, Sequence
from contextlib import AsyncExitStack, ExitStack
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from common.entries import StreamId
from common.messages import Result
from common.presence.status import read_status
from common.redis.clients import CONNECTION_ERRORS, AsyncRedis, RedisServers, SyncRedis
from common.redis.keys import Keys
from parakeet.client import Stream, connect
from tests.ingress_process import IngressProcess
from tests.ports import HOST
from tests.servers import SERVER_KINDS, make_server
from tests.stack import TIMEOUTS
from tests.stream_client import expected_text, noise
from tests.waiting import until
from tests.worker_process import SHORT_LEASE_MS, WorkerProcess

_NUM_STREAMS = 9


class Sharded:
    """Servers that share the streams, and processes on them.

    processes: of the servers, by their shards.
    """

    def __init__(self, processes_of_servers: Sequence[Any], folder: Path, processes: ExitStack) -> None:
        self.processes = processes_of_servers
        self.url = url = "+++".join(server.url for server in processes_of_servers)
        self.shards = shards = len(processes_of_servers)
        self.servers = RedisServers.parse(tuple(part for part in url.split("+++")), shards, timeout_ms=30_000)
        self.redis = SyncRedis(self.servers)
        self._folder = folder
        self._processes = processes

    @property
    def variable(self) -> str:
        return self.url.replace("+++", ",")

    def command(self, shard: int, *words: str | bytes | int) -> Any:
        return self.redis.shard(shard).execute_command(*words)

    def worker(self, name: str, **flags: Any) -> WorkerProcess:
        flags = {"redis_shards": self.shards, "worker_max_streams": 6, **flags}
        process = WorkerProcess(self.variable, name, self._folder / f"{name}.log", **flags)
        self._processes.enter_context(process)
        return process.ready(_Shard0(self.redis))

    def ingress(self, name: str, **flags: Any) -> IngressProcess:
        flags = {"redis_shards": self.shards, "max_num_streams": 50, **flags}
        process = IngressProcess(self.variable, name, self._folder / f"{name}.log", **flags)
        self._processes.enter_context(process)
        return process.ready(_Shard0(self.redis))

    def held_by(self, shard: int) -> set[str]:
        """Ingresses that have streams on a shard."""
        entries = self.command(shard, "XRANGE", f"px:{{{shard}}}:new", "-", "+")
        streams = [fields[fields.index(b"sid") + 1] for _, fields in entries]
        names = [self.command(shard, "HGET", b"px:{%d}:%b:m" % (shard, sid), "ingress") for sid in streams]
        return {name.decode() for name in names if name}

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
        processes = stack.enter_context(ExitStack())
        made = Sharded(servers, tmp_path, processes)
        stack.callback(made.redis.close)
        yield made


@pytest.fixture
async def clients() -> AsyncIterator[AsyncExitStack]:
    """Closes clients at the end."""
    async with AsyncExitStack() as stack:
        yield stack


async def homes_are_known(names: list[str], sharded: Sharded) -> None:
    """Wait until each ingress has signed on and had another heartbeat, which tells it of the others."""
    scores = {name: await _score(name, sharded) for name in names}
    for _ in range(2):
        for name in names:
            await until(lambda name=name: _later(name, scores, sharded), what=f"{name}'s heartbeat")  # type: ignore[misc]


async def creates_on(ingress: IngressProcess, shards: set[int], sharded: Sharded) -> bool:
    """Whether an ingress creates its next stream on one of these shards."""
    reader, writer = await asyncio.open_connection(HOST, ingress.port)
    stream_id = int(json.loads(await reader.readline())["stream_id"])
    writer.close()
    await until(lambda: sharded.command(0, "ZCARD", "px:{0}:adm") == 0, what="the return of its slot")
    return stream_id % sharded.shards in shards


async def _score(name: str, sharded: Sharded) -> float:
    found: list[float] = []

    def known() -> bool:
        score = sharded.command(0, "ZSCORE", "px:{0}:ingresses", name)
        found[:] = [] if score is None else [float(score)]
        return bool(found)

    await until(known, what=f"{name} in the register")
    return found[0]


def _later(name: str, scores: dict[str, float], sharded: Sharded) -> bool:
    score = float(sharded.command(0, "ZSCORE", "px:{0}:ingresses", name) or 0)
    later = score > scores[name]
    scores[name] = max(score, scores[name])
    return later


async def stream(url: str, pcm: bytes, *, pause_s: float = 0.0) -> list[Result]:
    """Send audio and collect the results."""
    async with await connect(url, timeouts=TIMEOUTS) as opened:

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
    first = sharded.worker("w-1", lease_ms=SHORT_LEASE_MS)
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


async def test_each_ingress_creates_its_streams_at_home_and_serves_those_of_others(sharded: Sharded) -> None:
    sharded.worker("w-1")
    sharded.worker("w-2")
    names = ["i-1", "i-2", "i-3"]
    ingresses = {name: sharded.ingress(name) for name in names}
    await homes_are_known(names, sharded)
    for home, name in enumerate(names):
        await until(partial(creates_on, ingresses[name], {home}, sharded), what=f"the home of {name}")
    pcm = noise(4.0)
    async with asyncio.TaskGroup() as tasks:
        runs = [
            tasks.create_task(stream(ingress.ws_url, pcm, pause_s=0.15))
            for ingress in ingresses.values()
            for _ in range(3)
        ]
        await until(
            lambda: [sharded.held_by(shard) for shard in range(3)] == [{"i-1"}, {"i-2"}, {"i-3"}],
            what="streams at home",
        )
    for run in runs:
        check(run.result(), pcm)
    # A stream that begins at one ingress goes on at another, on the server where it is.
    urls = (ingresses["i-1"].ws_url, ingresses["i-3"].ws_url)
    async with await connect(urls, resume=True, timeouts=TIMEOUTS) as opened:
        await opened.send(pcm[: len(pcm) // 2])
        await until(lambda: sharded.held_by(0) == {"i-1"}, what="the stream at home")
        ingresses["i-1"].send(signal.SIGKILL)
        await until(lambda: sharded.held_by(0) == {"i-3"}, what="the stream at another ingress")
        await opened.send(pcm[len(pcm) // 2 :])
        await opened.finish()
        results = [result async for result in opened.results()]
    check(results, pcm)


@pytest.mark.parametrize("how", ["full", "dead"])
async def test_an_ingress_whose_home_is_away_or_full_creates_its_streams_elsewhere(
    sharded: Sharded, how: str
) -> None:
    sharded.worker("w-1")
    names = ["i-1", "i-2", "i-3"]
    ingresses = {name: sharded.ingress(name) for name in names}
    await homes_are_known(names, sharded)
    if how == "full":
        sharded.command(1, "CONFIG", "SET", "maxmemory", 1 << 20)  # it uses as much already
    else:
        sharded.processes[1].send_signal(signal.SIGKILL)
    await until(partial(creates_on, ingresses["i-2"], {0, 2}, sharded), what="the ingress notices")
    pcm = noise(2.0)
    async with asyncio.TaskGroup() as tasks:
        runs = [tasks.create_task(stream(ingresses["i-2"].ws_url, pcm, pause_s=0.15)) for _ in range(4)]
        await until(
            lambda: [sharded.held_by(shard) for shard in (0, 2)] == [{"i-2"}, {"i-2"}],
            what="streams elsewhere",
        )
    for run in runs:
        check(run.result(), pcm)


@pytest.mark.parametrize("how", [signal.SIGKILL, signal.SIGSTOP])
async def test_a_worker_is_replaced_while_a_server_is_away(
    sharded: Sharded, clients: AsyncExitStack, how: signal.Signals
) -> None:
    """Its streams on the other servers go on at another worker; nobody waits for the server that is away."""
    first = sharded.worker("w-1", lease_ms=SHORT_LEASE_MS, redis_timeout_ms=1000)
    ingress = sharded.ingress("i-1", redis_timeout_ms=1000)
    pcm = noise(3.0)
    streams = await opened_at(ingress.ws_url, 6, clients)
    for opened in streams:
        await opened.send(pcm[: len(pcm) // 2])
    await until(
        lambda: all(sharded.stream_keys(shard, "r") for shard in range(sharded.shards)),
        what="results on every shard",
    )
    sharded.worker("w-2", redis_timeout_ms=1000)
    sharded.processes[2].send_signal(how)
    first.send(signal.SIGKILL)
    going_on = [opened for opened in streams if opened.stream_id % sharded.shards != 2]
    results = [asyncio.create_task(_rest(opened)) for opened in going_on]
    for opened in going_on:
        await opened.send(pcm[len(pcm) // 2 :])
        await opened.finish()
    for result in results:
        check(await result, pcm)
    sharded.processes[2].send_signal(signal.SIGCONT)


@pytest.mark.parametrize("how", [signal.SIGKILL, signal.SIGSTOP])
async def test_streams_go_on_while_another_server_is_away(
    sharded: Sharded, clients: AsyncExitStack, how: signal.Signals
) -> None:
    """At a worker that has streams on the server that is away, and results for it."""
    sharded.worker("w-1", worker_max_streams=20, redis_timeout_ms=1000, replay_seconds=2)
    ingress = sharded.ingress("i-1", redis_timeout_ms=1000)
    pcm = noise(8.0)
    part = len(pcm) // 8
    streams = await opened_at(ingress.ws_url, 9, clients)
    results = [asyncio.create_task(_rest(opened)) for opened in streams]
    for opened in streams:
        await opened.send(pcm[:part])
    await until(
        lambda: all(sharded.stream_keys(shard, "r") for shard in range(sharded.shards)),
        what="results on every shard",
    )
    for opened in streams:
        await opened.send(pcm[part : 2 * part])
    sharded.processes[2].send_signal(how)
    there = [opened.stream_id % sharded.shards == 2 for opened in streams]
    for number in range(2, 8):
        for opened, is_away in zip(streams, there, strict=True):
            if not is_away:
                await opened.send(pcm[number * part : (number + 1) * part])
    checkpoints = [
        ("HGET", b"px:{%d}:%d:m" % (opened.stream_id % sharded.shards, opened.stream_id), "ck_samples")
        for opened, is_away in zip(streams, there, strict=True)
        if not is_away
    ]
    await until(
        lambda: all(
            int(sharded.command(int(command[1][4:5]), *command) or 0) > 3 * 16_000 for command in checkpoints
        ),
        what="later checkpoints of the streams elsewhere",
    )
    for opened, is_away in zip(streams, there, strict=True):
        if not is_away:
            await opened.finish()
    for result, is_away in zip(results, there, strict=True):
        if is_away:
            result.cancel()
        else:
            check(await result, pcm)
    sharded.processes[2].send_signal(signal.SIGCONT)


def test_a_command_about_many_streams_runs_on_the_servers_that_answer(sharded: Sharded) -> None:
    """As when a worker notes that it hands its streams over, which makes them no suspects."""
    sharded.processes[0].send_signal(signal.SIGKILL)
    streams = [StreamId(number) for number in range(6)]
    with pytest.raises(CONNECTION_ERRORS):
        sharded.redis.of_streams([(stream, ("SET", f"of:{stream}", 1)) for stream in streams])
    for stream in streams:
        if stream % sharded.shards:
            assert sharded.command(stream % sharded.shards, "EXISTS", f"of:{stream}")


async def opened_at(url: str, count: int, clients: AsyncExitStack) -> list[Stream]:
    return [await clients.enter_async_context(await connect(url, timeouts=TIMEOUTS)) for _ in range(count)]


async def _rest(opened: Stream) -> list[Result]:
    return [result async for result in opened.results()]
