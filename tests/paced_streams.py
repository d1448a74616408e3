"""Clients that speak in real time for as long as a test disturbs the service, and what they were told."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final, Self

from common.messages import Result
from common.options import StreamOptions
from parakeet.client import ClientTimeouts, Stream, connect
from tests.stack import check_gapless, collect
from tests.waiting import until

_BYTES_A_SECOND: Final = 32_000
_MESSAGE_BYTES: Final = 5120
_OPTIONS: Final = StreamOptions(text="new", sample_rate=16_000)
_TIMEOUTS: Final = ClientTimeouts(connect_s=20, silence_s=60, final_s=120, resume_s=120, send_s=120)


@dataclass(frozen=True, slots=True)
class Heard:
    """What one client was told.

    num_said: how often it said the recording.   num_resumptions: how often it changed its connection.
    """

    text: str
    num_said: int
    num_resumptions: int


class PacedStreams:
    """Streams that say the same recording over and over, in real time, until `finish`.

    urls: of all ingresses; each client begins at another one.   pcm: 16-bit samples at 16 kHz.
    """

    def __init__(self, urls: Sequence[str], pcm: bytes, num_streams: int, api_key: str | None = None) -> None:
        self._urls = list(urls)
        self._pcm = pcm
        self._key = api_key
        self._num_streams = num_streams
        self._ending = asyncio.Event()
        self._tasks: list[asyncio.Task[Heard]] = []
        self._num_results = [0] * num_streams

    async def __aenter__(self) -> Self:
        self._tasks = [asyncio.create_task(self._speak(index)) for index in range(self._num_streams)]
        await self.go_on()
        return self

    async def __aexit__(self, *_: object) -> None:
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    async def go_on(self, timeout_s: float = 120.0) -> None:
        """Wait until every stream has had more results."""
        before = list(self._num_results)

        def all_heard() -> bool:
            for task in self._tasks:
                if task.done():
                    task.result()
            return all(now > then for now, then in zip(self._num_results, before, strict=True))

        await until(all_heard, timeout_s, "more results of every stream")

    async def finish(self) -> list[Heard]:
        """Let each client say its recording to the end; what they were told, gapless and in order."""
        self._ending.set()
        return list(await asyncio.gather(*self._tasks))

    async def _speak(self, index: int) -> Heard:
        first = index % len(self._urls)
        urls = (*self._urls[first:], *self._urls[:first])
        async with await connect(urls, options=_OPTIONS, api_key=self._key, timeouts=_TIMEOUTS) as stream:
            results: list[Result] = []

            async def hear() -> None:
                async for result in stream.results():
                    results.append(result)
                    self._num_results[index] += 1

            async with asyncio.TaskGroup() as tasks:
                tasks.create_task(hear())
                num_said = await self._say(stream)
            check_gapless(results)
            return Heard(results[-1].text, num_said, stream.num_resumptions)

    async def _say(self, stream: Stream) -> int:
        loop = asyncio.get_running_loop()
        due, num_said = loop.time(), 0
        while not num_said or not self._ending.is_set():
            for at in range(0, len(self._pcm), _MESSAGE_BYTES):
                message = self._pcm[at : at + _MESSAGE_BYTES]
                await stream.send(message)
                due += len(message) / _BYTES_A_SECOND
                await asyncio.sleep(due - loop.time())
            num_said += 1
        await stream.finish()
        return num_said


async def texts_of(urls: Sequence[str], pcm: bytes, heard: Sequence[Heard], api_key: str | None) -> list[str]:
    """What each client should have been told: the text of the same audio, with nothing in its way."""
    texts: dict[int, str] = {}
    for number in sorted({one.num_said for one in heard}):
        async with (
            await connect(urls, options=_OPTIONS, api_key=api_key, timeouts=_TIMEOUTS) as stream,
            asyncio.TaskGroup() as tasks,
        ):
            collecting = tasks.create_task(collect(stream))
            for _ in range(number):
                await stream.send(pcm)
            await stream.finish()
        texts[number] = collecting.result()[-1].text
    return [texts[one.num_said] for one in heard]
