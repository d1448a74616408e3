"""Several ingresses and workers on one Redis: what they say together, and workers that come and go idle."""

from __future__ import annotations

import asyncio
import signal
from collections.abc import Sequence
from contextlib import ExitStack
from functools import partial
from pathlib import Path
from typing import Any

import orjson
import pytest

from common.messages import Result
from parakeet.client import Stream, connect
from tests.ingress_process import IngressProcess
from tests.integration.monitoring.test_status import EXAMPLE, shape
from tests.servers import raw_client
from tests.stack import TIMEOUTS
from tests.stream_client import expected_text, noise
from tests.waiting import until
from tests.worker_process import WorkerProcess

SLOTS = 4


async def _last(stream: Stream) -> Result:
    return [result async for result in stream.results()][-1]


@pytest.mark.one_server
async def test_any_ingress_tells_the_documented_status_of_streams_at_all(
    redis_url: str, tmp_path: Path
) -> None:
    client = raw_client(redis_url)
    with (
        WorkerProcess(redis_url, "w1", tmp_path / "w1.log") as worker,
        IngressProcess(redis_url, "i1", tmp_path / "i1.log") as first,
        IngressProcess(redis_url, "i2", tmp_path / "i2.log") as second,
    ):
        worker.ready(client)
        ingresses = (first.ready(client), second.ready(client))
        urls = (first.tcp_url, second.ws_url, second.tcp_url)
        streams = [await connect(url, timeouts=TIMEOUTS) for url in urls]
        sent = b""

        def statuses() -> list[dict[str, Any]]:
            return [ingress.status() for ingress in ingresses]

        async def work_is_reported() -> bool:
            nonlocal sent
            sent += noise(0.16)  # rates are those of the last few seconds
            for stream in streams:
                await stream.send(noise(0.16))
            return all(
                status["rates_per_sec"]["encode_frames"] > 0 and status["scheduler"]["active"] == 3
                for status in statuses()
            )

        await until(work_is_reported, what="a report of the work on all streams")
        for status in statuses():
            assert shape(status) == shape(orjson.loads(EXAMPLE))
            assert status["connected_streams"] == 3
            assert status["scheduler"] == {"active": 3, "waiting": 0}
            assert status["counts"]["decode_calls"] > 0
        for stream in streams:
            await stream.finish()
        for stream in streams:
            assert (await _last(stream)).text == expected_text(sent)
            await stream.close()


@pytest.mark.slow
@pytest.mark.one_server
@pytest.mark.parametrize(("stopped", "number"), [((0, 1), signal.SIGTERM), ((1, 2), signal.SIGKILL)])
async def test_two_of_three_idle_workers_stop_and_come_back(
    redis_url: str, tmp_path: Path, stopped: tuple[int, int], number: signal.Signals
) -> None:
    """The third serves alone meanwhile, and the two alone afterwards, each with all its slots."""
    client = raw_client(redis_url)
    with ExitStack() as processes:

        def start(name: str) -> WorkerProcess:
            return processes.enter_context(
                WorkerProcess(
                    redis_url, name, tmp_path / f"{name}.log", worker_max_streams=SLOTS, lease_ms=5_000
                )
            )

        def is_forgotten(worker_id: str) -> bool:
            return not client.exists(f"px:{{0}}:w:{worker_id}")

        async def stop(workers: Sequence[WorkerProcess], how: signal.Signals) -> None:
            for worker in workers:
                worker.send(how)
            for worker in workers:
                await asyncio.to_thread(worker.wait)
                # At once after a stop in order, when the lease has lapsed after a kill.
                await until(partial(is_forgotten, worker.worker_id))

        async def ready(workers: Sequence[WorkerProcess]) -> None:
            for worker in workers:
                await asyncio.to_thread(worker.ready, client)

        ingress = processes.enter_context(IngressProcess(redis_url, "i1", tmp_path / "i1.log"))
        ingress.ready(client)

        async def serve_fully(num_workers: int) -> None:
            """As many streams at once as the workers have slots, all of them whole."""
            pcm = noise(0.8)
            streams = [await connect(ingress.ws_url, timeouts=TIMEOUTS) for _ in range(num_workers * SLOTS)]
            for stream in streams:
                await stream.send(pcm)
            heard = [aiter(stream.results()) for stream in streams]
            for results in heard:
                await anext(results)  # all are held at once before the first may end
            for stream in streams:
                await stream.finish()
            for stream, results in zip(streams, heard, strict=True):
                assert [result.text async for result in results][-1] == expected_text(pcm)
                await stream.close()
            await until(lambda: client.zcard("px:{0}:adm") == 0, what="the end of all admissions")

        workers = [start(f"w{index}") for index in range(3)]
        await ready(workers)
        await serve_fully(3)
        gone = [workers[index] for index in stopped]
        (stayed,) = (worker for worker in workers if worker not in gone)
        await stop(gone, number)
        await serve_fully(1)
        back = [start(f"{worker.worker_id}-again") for worker in gone]
        await ready(back)
        await serve_fully(3)
        await stop([stayed], number)
        await serve_fully(2)
