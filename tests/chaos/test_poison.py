"""Audio that ends its workers: suspects run alone, poison is ended, everybody else goes on."""

from __future__ import annotations

import signal
from pathlib import Path
from typing import Any

import pytest

from tests.chaos.faulty.crashing_worker import DEADLY, HANGING, RAISING
from tests.chaos.fleets.respawning import Respawning, assert_whole, say, stack
from tests.chaos.suspects import FLAGS, serve_suspects
from tests.servers import raw_client
from tests.stream_client import ClientStream, IngressSide, noise
from tests.waiting import until
from tests.worker_process import WorkerProcess


async def innocent(ingress: IngressSide, pcm: bytes, count: int) -> list[ClientStream]:
    streams = [await ingress.open() for _ in range(count)]
    for stream in streams:
        say(stream, pcm[: len(pcm) // 2])
    await until(lambda: all(stream.seq >= 4 for stream in streams), what="results")
    return streams


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
        await ingress.ended(poison, timeout_s=300.0)
        assert poison.sent[-1]["code"] == "poison", workers.logs()
        for other in others:
            say(other, pcm[len(pcm) // 2 :], final=True)
        await ingress.ended(*others, timeout_s=200.0)
        for other in others:
            assert_whole(other, pcm)
        # Two ordinary workers died of it; then a group of suspects, where there was one, and the poison
        # alone, twice. Every death was of the kind meant.
        assert workers.statuses == [status] * 2, workers.logs()
        # The worker that started a process may hear of its end after another has followed it.
        await until(
            lambda: workers.ends_in_quarantine() in ([status] * 2, [status] * 3),
            what="the ends in quarantine",
        )
        _assert_dead_letter(client, poison, mark)


def _assert_dead_letter(client: Any, poison: ClientStream, mark: bytes) -> None:
    letter = client.hgetall(poison.keys.dead)
    assert int(letter[b"stream"]) == poison.stream
    assert int(letter[b"alone"]) == 2
    assert 0 < client.pttl(poison.keys.dead) <= 3600 * 1000
    assert 0 < client.pttl(poison.keys.dead_audio) <= 3600 * 1000
    entries = client.xrange(poison.keys.dead_audio)
    assert any(fields[b"p"].startswith(mark) for _, fields in entries if b"p" in fields)


@pytest.mark.chaos
async def test_many_suspects_are_served_by_one_process_at_a_time(redis_url: str, tmp_path: Path) -> None:
    """Poison among a hundred suspects: groups shrink around it, everybody else goes on, whole."""
    client = raw_client(redis_url)
    pcm = noise(4.0)
    async with stack(redis_url, tmp_path, worker_max_streams=100, **FLAGS) as (workers, ingress):
        served = await serve_suspects(workers, ingress, client, pcm, 100, 1)
        assert served.num_suspects >= 90, workers.logs()
        for stream in served.innocent:
            stream.append(pcm[51_200 + 32_000 :], final=True)
        await ingress.ended(*served.innocent, timeout_s=200.0)
        for stream in served.innocent:
            assert_whole(stream, pcm)
            assert not client.exists(stream.keys.dead)
        (poison,) = served.poison
        assert poison.sent[-1]["code"] == "poison", workers.logs()
        _assert_dead_letter(client, poison, HANGING)
        # Two ordinary workers; then a group of 64, one of 8, and the poison alone, twice.
        assert workers.statuses == [70, 70]
        await until(lambda: workers.ends_in_quarantine() == [70] * 4, what="the ends in quarantine")


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
            await until(lambda at=number: len(workers.statuses) > at, what="the death")  # type: ignore[misc]
            if number % 2:
                before = [stream.seq for stream in streams]
                part = len(pcm) // 20
                at = len(pcm) // 2 + (number // 2) * part
                for stream in streams:
                    say(stream, pcm[at : at + part])
                await until(
                    lambda old=before: all(s.seq > seq for s, seq in zip(streams, old, strict=True)),  # type: ignore[misc]
                    what="progress",
                )
        rest = len(pcm) // 2 + 2 * (len(pcm) // 20)
        for stream in streams:
            say(stream, pcm[rest:], final=True)
        await ingress.ended(*streams, timeout_s=200.0)
        for stream in streams:
            assert_whole(stream, pcm)
            assert not client.exists(stream.keys.dead)


async def _owner_of(client: Any, stream: ClientStream, workers: Respawning) -> WorkerProcess:
    """The ordinary worker that owns a stream now."""

    def owner() -> WorkerProcess | None:
        name = client.hget(stream.keys.meta, "owner").decode()
        running = [worker for worker in workers.workers if worker.running and worker.worker_id == name]
        return running[0] if running else None

    await until(owner, what="an owner")
    found = owner()
    assert found is not None
    return found
