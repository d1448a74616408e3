"""After which errors the Python client resumes, how often it tries, and when it gives up."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import replace

import pytest

from common.entries import LineKind
from common.errors import ERROR_SPECS, ErrorCode, Fault, Retry, StreamError, Unavailable
from common.messages import Resume
from ingress.backplane import NOBODY, Caller, Resumption, StreamListener
from parakeet.client import ClientTimeouts, ConnectionLost, ServerError, connect
from parakeet.client.outage import Outage
from tests.fake_backplane import ScriptedBackplane, some_result
from tests.ingress_harness import HOST, serving, wait_until

_TIMEOUTS = ClientTimeouts(connect_s=60, silence_s=60, final_s=60, resume_s=60, send_s=60)
_HASTY = replace(_TIMEOUTS, resume_s=1)
_PASSING = [code for code, spec in ERROR_SPECS.items() if spec.retry is Retry.RESUME]
_ENDING = [
    code
    for code, spec in ERROR_SPECS.items()
    if spec.retry is not Retry.RESUME and spec.closes and spec.fault is Fault.SERVICE
]


class _Ailing(ScriptedBackplane):
    """Answers attempts to resume with these errors first."""

    def __init__(self, *errors: StreamError) -> None:
        super().__init__(echo=True)
        self.errors = list(errors)

    async def resume(self, listener: StreamListener, request: Resume, caller: Caller = NOBODY) -> Resumption:
        self.resumption = self.errors.pop(0) if self.errors else (10, 10, False)
        return await super().resume(listener, request, caller)


@pytest.mark.parametrize("kind", ["tcp", "ws"])
@pytest.mark.parametrize("code", _PASSING)
async def test_a_stream_goes_on_after_an_error_behind_which_it_waits(code: ErrorCode, kind: str) -> None:
    async with serving(_Ailing()) as harness:
        url = harness.tcp_url if kind == "tcp" else harness.ws_url
        async with await connect(url, timeouts=_TIMEOUTS) as stream:
            await stream.send(b"\0\0" * 10)
            texts = [(await anext(stream.results())).text]
            if code is ErrorCode.SLOW_READER:
                for connection in list(harness.connections):
                    connection._unread_too_long()
            else:
                harness.backplane.link.listener.on_failure(Unavailable(code, "A pause."))
            await stream.send(b"\0\0" * 5)
            await stream.finish()
            texts += [result.text async for result in stream.results()]
    assert texts[0] == "10 samples"
    assert texts[-1] == "15 samples"
    assert len(harness.backplane.resume_requests) == 1
    assert harness.backplane.link.samples == 15, "no sample is lost, and none comes twice"


@pytest.mark.parametrize("code", _ENDING)
async def test_a_stream_that_an_error_ended_is_not_resumed(code: ErrorCode) -> None:
    async with serving(_Ailing()) as harness:
        async with await connect(harness.ws_url, timeouts=_TIMEOUTS) as stream:
            await stream.send(b"\0\0" * 10)
            await anext(stream.results())
            harness.backplane.link.listener.on_failure(Unavailable(code, "It is over."))
            with pytest.raises(ServerError, match="It is over") as raised:
                await stream.final()
        assert raised.value.code == code
        assert raised.value.may_retry
        assert not harness.backplane.resume_requests


async def test_an_attempt_that_fails_is_no_end_of_the_stream() -> None:
    errors = (
        Unavailable(ErrorCode.REDIS_UNAVAILABLE, "Redis is not available."),
        Unavailable(ErrorCode.NO_WORKER, "No worker is alive."),
        Unavailable(ErrorCode.DRAINING, "Elsewhere."),
    )
    async with serving(_Ailing(*errors)) as harness:
        async with await connect(harness.ws_url, timeouts=_TIMEOUTS) as stream:
            await stream.send(b"\0\0" * 10)
            await anext(stream.results())
            harness.transports[-1].abort()
            await stream.send(b"\0\0" * 5)
            await stream.finish()
            assert (await stream.final()).text == "15 samples"
        assert len(harness.backplane.resume_requests) == 4


@pytest.mark.parametrize("code", [ErrorCode.UNAUTHORIZED, ErrorCode.STREAM_LOST])
async def test_an_attempt_that_cannot_succeed_is_the_last(code: ErrorCode) -> None:
    async with serving(_Ailing(Unavailable(code, "Never."))) as harness:
        async with await connect(harness.ws_url, timeouts=_TIMEOUTS) as stream:
            await stream.send(b"\0\0" * 10)
            await anext(stream.results())
            harness.transports[-1].abort()
            with pytest.raises(ServerError, match="Never") as raised:
                await stream.final()
        assert raised.value.code == code
        assert len(harness.backplane.resume_requests) == 1


async def test_a_stream_that_is_not_resumed_in_time_ends_with_the_error_that_ended_its_connection() -> None:
    async with serving(ScriptedBackplane()) as harness:
        harness.backplane.resumption = Unavailable(ErrorCode.NO_WORKER, "No worker is alive.")
        async with await connect(harness.tcp_url, timeouts=_HASTY) as stream:
            await stream.send(b"\0\0" * 10)
            await wait_until(lambda: "append" in harness.backplane.link.log)
            listener = harness.backplane.link.listener
            listener.on_result(LineKind.PARTIAL, some_result(1, "one", acked=10))
            listener.on_failure(Unavailable(ErrorCode.REDIS_UNAVAILABLE, "Redis is not available."))
            with pytest.raises(ServerError, match="not resumed within 1 s: no_worker") as raised:
                await stream.final()
            assert raised.value.code == "redis_unavailable"
            assert raised.value.may_retry


@asynccontextmanager
async def busy_server(heads: list[bytes], retry_after: bytes) -> AsyncIterator[str]:
    """A server that has 503 for everybody; `heads` gets one entry a connection."""

    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        heads.append(await reader.readuntil(b"\r\n\r\n"))
        writer.write(b"HTTP/1.1 503 Busy\r\nContent-Length: 0\r\n" + retry_after + b"\r\n\r\n")
        await writer.drain()
        writer.close()

    server = await asyncio.start_server(answer, HOST, 0)
    async with server:
        yield f"ws://{HOST}:{server.sockets[0].getsockname()[1]}"


@pytest.mark.parametrize(
    ("retry_after", "num_asked"),
    [
        (b"Retry-After: 3600", 1),
        (b"Retry-After: 0", 4),
        (b"Retry-After: Fri, 01 Jan 2027 00:00:00 GMT", 4),
        (b"Retry-After: 3600\r\nRetry-After: 0", 1),
    ],
)
async def test_a_server_that_asks_for_a_pause_gets_it(retry_after: bytes, num_asked: int) -> None:
    heads: list[bytes] = []
    errors = [Unavailable(ErrorCode.NO_WORKER, "No worker is alive.")] * 3
    async with busy_server(heads, retry_after) as busy, serving(_Ailing(*errors)) as harness:
        async with await connect((harness.ws_url,), timeouts=_TIMEOUTS) as stream:
            stream._urls = (busy, harness.ws_url)
            await stream.send(b"\0\0" * 10)
            await anext(stream.results())
            harness.transports[-1].abort()
            await stream.send(b"\0\0" * 5)
            await stream.finish()
            assert (await stream.final()).text == "15 samples"
        assert len(harness.backplane.resume_requests) == 4
        assert len(heads) == num_asked


async def test_the_pause_that_a_server_asks_for_is_told() -> None:
    heads: list[bytes] = []
    async with busy_server(heads, b"Retry-After: 7") as busy:
        with pytest.raises(ConnectionLost, match="503") as raised:
            await connect(busy, timeouts=_TIMEOUTS)
    assert raised.value.retry_after_s == 7
    assert raised.value.may_retry


async def test_attempts_are_bounded_by_the_time_since_the_last_progress() -> None:
    time_s = 100.0
    outage = Outage(1.0, lambda: time_s)
    outage.lost("nothing")
    assert await outage.pause()
    time_s += 0.9
    outage.resumed()
    outage.lost("nothing")
    time_s += 0.2
    assert not await outage.pause(), "that connection brought nothing"
    outage.lost("an acknowledgement")
    time_s += 0.3
    outage.resumed()
    time_s += 0.9
    outage.lost("an acknowledgement")
    assert await outage.pause(), "it had a connection, and perhaps nothing to send"
    outage.lost("a result")
    assert await outage.pause()
    outage.resumed()
    time_s += 1.1
    outage.lost("a result")
    assert await outage.pause(), "nothing was to come on a connection that was there for so long"
