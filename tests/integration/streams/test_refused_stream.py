"""A stream whose keys Redis refuses for good fails alone: neither its neighbours nor a process notice."""

from __future__ import annotations

import asyncio
from contextlib import suppress

import pytest

from common.messages import Result
from parakeet.client import Stream, connect
from parakeet.client.errors import ClientError, ServerError
from tests.stack import TIMEOUTS, Stack
from tests.stream_client import expected_text, noise
from tests.waiting import until


class Client:
    """One stream of audio, and what becomes of it."""

    def __init__(self, stream: Stream) -> None:
        self.stream = stream
        self.results: list[Result] = []
        self.error: ClientError | None = None
        self._reading = asyncio.create_task(self._read())

    @classmethod
    async def open(cls, url: str, *, resume: bool = False) -> Client:
        return cls(await connect(url, resume=resume, timeouts=TIMEOUTS))

    async def _read(self) -> None:
        try:
            self.results += [result async for result in self.stream.results()]
        except ClientError as error:
            self.error = error

    async def feed(self, pcm: bytes) -> None:
        for at in range(0, len(pcm), 5120):
            with suppress(ClientError):  # the reading has it too
                await self.stream.send(pcm[at : at + 5120])
            await asyncio.sleep(0.01)

    async def end(self) -> str:
        """The whole text; empty where the stream has failed."""
        with suppress(ClientError):
            await self.stream.finish()
        await self._reading
        await self.stream.close()
        return self.results[-1].text if self.results and self.results[-1].is_final else ""


@pytest.mark.parametrize("resume", [False, True])
@pytest.mark.parametrize("kind", ["a", "r", "m"])
async def test_a_key_that_is_refused_ends_its_stream_and_no_other(
    stack: Stack, kind: str, resume: bool
) -> None:
    worker = stack.worker()
    ingress = stack.ingress("i-1", redis_outage_s=600)
    pcm = noise(4.0)
    half = len(pcm) // 2 // 5120 * 5120
    clients = [await Client.open(ingress.tcp_url, resume=resume) for _ in range(3)]
    await asyncio.gather(*(client.feed(pcm[:half]) for client in clients))
    # What no wait mends: the key holds another kind of value.
    key = f"px:{{0}}:{clients[1].stream.stream_id}:{kind}"
    await until(lambda: stack.client.exists(key), what="the key")
    stack.client.set(key, "no stream", px=60_000)
    # Whoever waited for the broken one would take the ten minutes after which a server is given up.
    async with asyncio.timeout(120):
        await asyncio.gather(*(client.feed(pcm[half:]) for client in clients))
        first, broken, last = await asyncio.gather(*(client.end() for client in clients))
    assert [first, last] == [expected_text(pcm)] * 2
    if kind != "m":  # the record is read when the stream changes hands, and at its end
        assert broken == ""
        assert isinstance(clients[1].error, ServerError)
        assert clients[1].error.code in ("internal", "stream_lost")
        # Its worker has ended it, and does not open it again and again.
        await until(lambda: stack.client.xlen("px:{0}:new") == 0, what="the end of all streams")
        assert "cannot be opened" not in worker.log_text()
    assert worker.running
    assert ingress.running
    # And the next stream is served.
    after = await Client.open(ingress.tcp_url)
    await after.feed(pcm)
    assert await after.end() == expected_text(pcm)
