"""Ingresses and workers on one Redis, and what a test's clients do with them."""

from __future__ import annotations

import asyncio
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from typing import Any, Final

from common.messages import Result
from parakeet.client import ClientTimeouts, Stream, connect
from tests.ingress_process import IngressProcess
from tests.servers import kept_for_clients, keys_of_streams, raw_client
from tests.waiting import WAIT_S, until
from tests.worker_process import WorkerProcess

TIMEOUTS: Final = ClientTimeouts(
    connect_s=WAIT_S, silence_s=WAIT_S, final_s=WAIT_S, resume_s=WAIT_S, send_s=WAIT_S
)
# Of a client that sees how its stream ended, and does not resume it when the service is back.
SEES_ITS_END: Final = replace(TIMEOUTS, resume_s=0.001)


class Stack:
    """Processes on one Redis. client: for looking at keys, where the processes' address is not for it."""

    def __init__(self, url: str, folder: Path, client: Any = None) -> None:
        self.url = url
        self.client: Any = raw_client(url) if client is None else client
        self._folder = folder
        self._processes = ExitStack()

    def worker(self, name: str = "w-1", *, ready: bool = True, **flags: Any) -> WorkerProcess:
        process = WorkerProcess(self.url, name, self._folder / f"{name}.log", **flags)
        self._processes.enter_context(process)
        return process.ready(self.client) if ready else process

    def ingress(self, name: str = "i-1", **flags: Any) -> IngressProcess:
        process = IngressProcess(self.url, name, self._folder / f"{name}.log", **flags)
        self._processes.enter_context(process)
        return process.ready(self.client)

    def close(self) -> None:
        self._processes.close()
        self.client.close()

    async def empty(self, timeout_s: float = WAIT_S) -> None:
        """Wait until nothing of any stream is left but what its client may come back for."""
        await until(self._no_keys_in_use, timeout_s, "the end of all keys of streams")
        await until(lambda: self.client.zcard("px:{0}:adm") == 0, timeout_s, "the end of all admissions")
        await until(lambda: self.client.xlen("px:{0}:new") == 0, timeout_s, "the end of all assignments")

    def _no_keys_in_use(self) -> bool:
        return set(keys_of_streams(self.client)) <= set(kept_for_clients(self.client))


def check_gapless(results: list[Result]) -> None:
    """Results are gapless, in order, and the last and only the last is final."""
    at = 0
    for result in results:
        assert (result.seq_first or result.seq) == at + 1
        at = result.seq
    assert [result.is_final for result in results] == [False] * (len(results) - 1) + [True]


async def collect(stream: Stream) -> list[Result]:
    """All results of a stream."""
    return [result async for result in stream.results()]


async def transcribe(url: str | tuple[str, ...], pcm: bytes, message_bytes: int = 5120) -> list[Result]:
    """Stream audio as fast as it goes, and collect the results."""
    async with await connect(url, timeouts=TIMEOUTS) as stream:
        async with asyncio.TaskGroup() as tasks:
            collecting = tasks.create_task(collect(stream))
            for at in range(0, len(pcm), message_bytes):
                await stream.send(pcm[at : at + message_bytes])
            await stream.finish()
        return collecting.result()
