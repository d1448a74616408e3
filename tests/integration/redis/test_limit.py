"""Redis at its limit of memory: streams go on as workers free memory, and new streams are refused.

The limit is put below what is used, so that only snapshots, which free audio, bring the server below it.
"""

from __future__ import annotations

import asyncio
import signal
from collections.abc import AsyncIterator, Iterator, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import pytest

from common.messages import Result
from parakeet.client import ServerError, Stream, connect
from tests.ingress_process import IngressProcess
from tests.servers import ServerKind, make_server
from tests.stack import TIMEOUTS, Stack, check_gapless
from tests.stream_client import expected_text, noise
from tests.waiting import until
from tests.worker_process import SHORT_LEASE_MS

_PCM: Final = noise(20.0)
_HALF: Final = len(_PCM) // 2
_CHUNK_BYTES: Final = 5120
_NUM_SPEAKERS: Final = 4
# Of the first halves, which are 1.3 MB, this much has to be freed before Redis takes anything again.
_TOO_MUCH: Final = 300_000
# No stream has a snapshot by itself: half of this is far more audio than any has.
_REPLAY_S: Final = 3600


@pytest.fixture
def stack(server_kind: ServerKind, tmp_path: Path) -> Iterator[Stack]:
    with make_server(server_kind) as server:
        stack = Stack(server.url, tmp_path)
        # What Redis takes for moments, such as the buffers of its clients, is little beside this.
        stack.client.setrange("ballast", 100 << 20, b"\0")
        yield stack
        stack.close()


@dataclass
class Speaker:
    """A stream, and its results so far."""

    stream: Stream
    results: list[Result]
    task: asyncio.Task[None]

    @staticmethod
    def of(stream: Stream) -> Speaker:
        results: list[Result] = []

        async def collect() -> None:
            async for result in stream.results():
                results.append(result)  # noqa: PERF401 - others look at them meanwhile

        return Speaker(stream, results, asyncio.create_task(collect()))

    @property
    def has_half(self) -> bool:
        """Whether the first half is decoded but for less than a chunk."""
        return bool(self.results) and self.results[-1].audio_ack_samples * 2 > _HALF - 2 * _CHUNK_BYTES


@asynccontextmanager
async def speakers_at_limit(stack: Stack, ingress: IngressProcess) -> AsyncIterator[list[Speaker]]:
    """Streams whose first half is decoded, in a Redis that is at its limit from now on."""
    async with AsyncExitStack() as opened:
        speakers = [
            Speaker.of(await opened.enter_async_context(await connect(ingress.tcp_url, timeouts=TIMEOUTS)))
            for _ in range(_NUM_SPEAKERS)
        ]
        for speaker in speakers:
            await speaker.stream.send(_PCM[:_HALF])
        await until(lambda: all(speaker.has_half for speaker in speakers), what="the first halves")
        used = stack.client.info("memory")["used_memory"]
        stack.client.config_set("maxmemory", used - _TOO_MUCH)
        yield speakers


async def finish(speakers: Sequence[Speaker]) -> None:
    """Send the other halves, and check what is told of all audio."""
    for speaker in speakers:
        await speaker.stream.send(_PCM[_HALF:])
        await speaker.stream.finish()
    await asyncio.gather(*(speaker.task for speaker in speakers))
    for speaker in speakers:
        check_gapless(speaker.results)
        assert speaker.results[-1].text == expected_text(_PCM)


async def test_streams_go_on(stack: Stack) -> None:
    stack.worker(replay_seconds=_REPLAY_S)
    async with speakers_at_limit(stack, stack.ingress(redis_outage_s=600)) as speakers:
        await finish(speakers)
    assert stack.client.info("errorstats")["errorstat_OOM"]["count"] > 0


async def test_another_worker_takes_over_at_the_limit(stack: Stack) -> None:
    first = stack.worker("w-1", replay_seconds=_REPLAY_S, lease_ms=SHORT_LEASE_MS)
    ingress = stack.ingress(redis_outage_s=600)
    async with speakers_at_limit(stack, ingress) as speakers:
        first.send(signal.SIGKILL)
        first.wait()
        stack.worker("w-2", replay_seconds=_REPLAY_S)
        await finish(speakers)


async def test_workers_keep_their_leases_and_new_streams_are_refused(stack: Stack) -> None:
    stack.worker(lease_ms=SHORT_LEASE_MS)
    ingress = stack.ingress()
    stack.client.config_set("maxmemory", 1)  # nothing can be freed

    def lease_end() -> float:
        return float(stack.client.zscore("px:{0}:workers", "w-1"))

    before = lease_end()
    await until(lambda: lease_end() > before + SHORT_LEASE_MS, what="a lease that goes on")
    with pytest.raises(ServerError, match="little memory left") as refused:
        async with await connect(ingress.tcp_url, timeouts=TIMEOUTS):
            pass
    assert refused.value.code == "no_free_stream"
