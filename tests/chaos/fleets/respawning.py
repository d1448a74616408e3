"""Workers that crash on marked audio and are started again, as the supervisor does it."""

from __future__ import annotations

import asyncio
import re
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

from tests.stream_client import ClientStream, IngressSide, expected_text, ingress_side
from tests.waiting import until
from tests.worker_process import WorkerProcess

FLAGS: dict[str, object] = {"lease_ms": 600, "step_timeout_ms": 1000}


class Respawning:
    """Crashing workers in `places`. statuses: exit statuses of those that died."""

    def __init__(self, url: str, folder: Path, places: int, **flags: object) -> None:
        self._url = url
        self._folder = folder
        self._places = places
        self._flags = {**FLAGS, **flags}
        self.workers: list[WorkerProcess] = []
        self.statuses: list[int] = []

    async def keep(self) -> None:
        """Keep the places filled."""
        async with asyncio.TaskGroup() as tasks:
            for place in range(self._places):
                tasks.create_task(self._keep(place))

    async def _keep(self, place: int) -> None:
        number = 0
        while True:
            name = f"w{place}-{number}"
            log = self._folder / f"{name}.log"
            with WorkerProcess(
                self._url, name, log, module="tests.chaos.faulty.crashing_worker", **self._flags
            ) as worker:
                self.workers.append(worker)
                await until(lambda of=worker: not of.running, float("inf"))  # type: ignore[misc]
                self.statuses.append(worker.wait())
            number += 1

    def logs(self) -> str:
        """What all of them logged, quarantined processes included."""
        return "".join(worker.log_text() for worker in self.workers)

    def ends_in_quarantine(self) -> list[int]:
        """Exit statuses of quarantined processes that died."""
        ends = re.findall(r"quarantined process \S+ ended with status (-?\d+)", self.logs())
        return [int(status) for status in ends if int(status)]


@asynccontextmanager
async def stack(
    url: str, folder: Path, places: int = 2, **flags: object
) -> AsyncIterator[tuple[Respawning, IngressSide]]:
    """Crashing workers and the ingress side."""
    workers = Respawning(url, folder, places, **flags)
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


def assert_whole(stream: ClientStream, pcm: bytes) -> None:
    """Nothing was lost, repeated or moved: the null engine's text is a checksum of the audio."""
    results = [message for message in stream.sent if message["type"] == "result"]
    assert stream.sent == results
    assert [result["seq"] for result in results] == list(range(1, len(results) + 1))
    assert stream.text == expected_text(pcm)
