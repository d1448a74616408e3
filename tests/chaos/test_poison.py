"""Audio that ends its workers: suspects run alone, poison is ended, everybody else goes on."""

from __future__ import annotations

import asyncio
import re
import signal
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest

from tests.chaos.crashing_worker import DEADLY, HANGING, RAISING
from tests.servers import raw_client
from tests.stream_client import ClientStream, IngressSide, expected_text, ingress_side, noise
from tests.waiting import until
from tests.worker_process import WorkerProcess

FLAGS = {"module": "tests.chaos.crashing_worker", "lease_ms": 600, "step_timeout_ms": 1000}


class Respawning:
    """Workers that are started again when they die, as the supervisor does it."""

    def __init__(self, url: str, folder: Path, places: int) -> None:
        self._url = url
        self._folder = folder
        self._places = places
        self.workers: list[WorkerProcess] = []
        self.statuses: list[int] = []

    async def keep(self) -> None:
        async with asyncio.TaskGroup() as tasks:
            for place in range(self._places):
                tasks.create_task(self._keep(place))

    async def _keep(self, place: int) -> None:
        number = 0
        while True:
            name = f"w{place}-{number}"
            with WorkerProcess(self._url, name, self._folder / f"{name}.log", **FLAGS) as worker:  # type: ignore[arg-type]
                self.workers.append(worker)
                await until(lambda of=worker: not of.running, float("inf"))  # type: ignore[misc]
                self.statuses.append(worker.wait())
            number += 1

    def logs(self) -> str:
        return "".join(worker.log_text() for worker in self.workers)


@asynccontextmanager
async def stack(url: str, folder: Path, places: int = 2) -> AsyncIterator[tuple[Respawning, IngressSide]]:
    workers = Respawning(url, folder, places)
    keeping = asyncio.create_task(workers.keep())
    try:
        async with ingress_side(url) as ingress:
            yield workers, ingress
    finally:
        keeping.cancel()
        await asyncio.gather(keeping, return_exceptions=True)


def say(stream: ClientStream, pcm: bytes, *, final: bool = False) -> None:
    """Append audio in entries of a chunk: a pending entry is then audio that is not decoded."""
    for at in range(0, len(pcm), 5120):
        stream.append(pcm[at : at + 5120], final=final and at + 5120 >= len(pcm))


async def innocent(ingress: IngressSide, pcm: bytes, count: int) -> list[ClientStream]:
    streams = [await ingress.open() for _ in range(count)]
    for stream in streams:
        say(stream, pcm[: len(pcm) // 2])
    await until(lambda: all(stream.seq >= 4 for stream in streams), 30.0, "results")
    return streams


def assert_whole(stream: ClientStream, pcm: bytes) -> None:
    results = [message for message in stream.sent if message["type"] == "result"]
    assert stream.sent == results
    assert [result["seq"] for result in results] == list(range(1, len(results) + 1))
    assert stream.text == expected_text(pcm)


@pytest.mark.chaos
@pytest.mark.parametrize(("mark", "status"), [(DEADLY, -signal.SIGKILL), (RAISING, 1), (HANGING, 70)])
async def test_poison_ends_with_an_error_and_the_others_do_not(
    redis_url: str, tmp_path: Path, mark: bytes, status: int
) -> None:
    client = raw_client(redis_url)
    pcm = noise(4.0)
    async with stack(redis_url, tmp_path) as (workers, ingress):
        others = await innocent(ingress, pcm, 4)
        poison = await ingress.open()
        say(poison, pcm[: len(pcm) // 2])
        await until(lambda: poison.seq >= 4, what="results")
        say(poison, mark + pcm[len(pcm) // 2 :])
        await ingress.ended(poison, timeout_s=80.0)
        assert poison.sent[-1]["code"] == "poison", workers.logs()
        for other in others:
            say(other, pcm[len(pcm) // 2 :], final=True)
        await ingress.ended(*others, timeout_s=60.0)
        for other in others:
            assert_whole(other, pcm)
        # Two ordinary workers died of it, then two that ran nothing else; every death was of the kind meant.
        assert workers.statuses == [status] * 2, workers.logs()
        # The worker that started a process may hear of its end after another has followed it.
        await until(lambda: _ends_alone(workers) == [status] * 2, what="the ends of those that ran alone")
        _assert_dead_letter(client, poison, mark)


def _ends_alone(workers: Respawning) -> list[int]:
    """Exit statuses of quarantined processes that died."""
    ends = re.findall(r"quarantined process \S+ ended with status (-?\d+)", workers.logs())
    return [int(status) for status in ends if int(status)]


def _assert_dead_letter(client: Any, poison: ClientStream, mark: bytes) -> None:
    letter = client.hgetall(poison.keys.dead)
    assert int(letter[b"stream"]) == poison.stream
    assert int(letter[b"alone"]) == 2
    assert 0 < client.pttl(poison.keys.dead) <= 3600 * 1000
    assert 0 < client.pttl(poison.keys.dead_audio) <= 3600 * 1000
    entries = client.xrange(poison.keys.dead_audio)
    assert any(fields[b"p"].startswith(mark) for _, fields in entries if b"p" in fields)


@pytest.mark.chaos
async def test_unrelated_deaths_end_no_stream(redis_url: str, tmp_path: Path) -> None:
    """Five workers die under the same streams, some before the replay was through: nobody is blamed."""
    client = raw_client(redis_url)
    pcm = noise(12.0)
    async with stack(redis_url, tmp_path) as (workers, ingress):
        streams = await innocent(ingress, pcm, 4)
        for number in range(5):
            victim = await _owner_of(client, streams[0], workers)
            victim.send(signal.SIGKILL)
            await until(lambda at=number: len(workers.statuses) > at, 20.0, "the death")  # type: ignore[misc]
            if number % 2:
                before = [stream.seq for stream in streams]
                part = len(pcm) // 20
                at = len(pcm) // 2 + (number // 2) * part
                for stream in streams:
                    say(stream, pcm[at : at + part])
                await until(
                    lambda old=before: all(s.seq > seq for s, seq in zip(streams, old, strict=True)),  # type: ignore[misc]
                    60.0,
                    "progress",
                )
        rest = len(pcm) // 2 + 2 * (len(pcm) // 20)
        for stream in streams:
            say(stream, pcm[rest:], final=True)
        await ingress.ended(*streams, timeout_s=60.0)
        for stream in streams:
            assert_whole(stream, pcm)
            assert not client.exists(stream.keys.dead)


async def _owner_of(client: Any, stream: ClientStream, workers: Respawning) -> WorkerProcess:
    """The ordinary worker that owns a stream now."""

    def owner() -> WorkerProcess | None:
        name = client.hget(stream.keys.meta, "owner").decode()
        running = [worker for worker in workers.workers if worker.running and worker.worker_id == name]
        return running[0] if running else None

    await until(owner, 60.0, "an owner")
    found = owner()
    assert found is not None
    return found
