"""Bodies of requests at the WebSocket port: slow, endless, broken, and cut into tiny chunks."""

from __future__ import annotations

import asyncio
from contextlib import suppress

import pytest
from starlette.requests import ClientDisconnect
from starlette.requests import Request as StarletteRequest
from starlette.responses import PlainTextResponse, Response
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

from ingress.http.endpoints import endpoint
from ingress.http.front import FREE_PARTS, Front
from tests.fake_backplane import ScriptedBackplane
from tests.ingress_harness import serving, wait_until


async def _echo(request: StarletteRequest) -> Response:
    return PlainTextResponse(await request.body())


_ENDPOINTS = (endpoint("/echo", _echo, "POST"),)


class _Upload:
    """An endpoint that reads a body, and counts the clients that were gone before its end."""

    def __init__(self) -> None:
        self.num_gone = 0
        self.endpoints = (endpoint("/upload", self._read, "POST"),)

    async def _read(self, request: StarletteRequest) -> Response:
        try:
            return PlainTextResponse(await request.body())
        except ClientDisconnect:
            self.num_gone += 1
            raise


@pytest.mark.parametrize("trailer", [b"x" * 9000, b"c: dddd\r\n" * 1000])
async def test_trailers_without_end_are_refused_at_their_bound(trailer: bytes) -> None:
    async with serving(ScriptedBackplane(), endpoints=_ENDPOINTS) as harness:
        client = await harness.raw_ws()
        client.writer.write(
            b"POST /echo HTTP/1.1\r\nHost: h\r\nTransfer-Encoding: chunked\r\n\r\n2\r\nok\r\n0\r\nA: b"
        )
        for _ in range(40):
            client.writer.write(trailer)
            with suppress(ConnectionError):
                await client.writer.drain()
        await wait_until(lambda: bool(harness.transports))
        (server,) = harness.transports
        await wait_until(lambda: isinstance(front := server.get_protocol(), Front) and front._over)
        await client.close()


async def test_a_body_that_does_not_end_ends_with_its_connection(caplog: pytest.LogCaptureFixture) -> None:
    async with serving(ScriptedBackplane(), endpoints=_ENDPOINTS) as harness:
        client = await harness.raw_ws()
        client.writer.write(b"POST /echo HTTP/1.1\r\nHost: h\r\nContent-Length: 3\r\n\r\nok")
        client.writer.write_eof()
        async with asyncio.timeout(60):
            assert await client.reader.read() == b""
        site = harness.site
        assert site is not None
        await wait_until(lambda: not site.state.tasks)
        await client.close()
    assert [record.getMessage() for record in caplog.records if record.levelname == "ERROR"] == []


@pytest.mark.parametrize(
    "rest",
    [
        b"Content-Length: 5\r\n\r\nhello",
        b"Transfer-Encoding: chunked\r\n\r\n2\r\nhe\r\n3\r\nllo\r\n0\r\nA: b\r\n\r\n",
    ],
)
@pytest.mark.parametrize("cut", [3, 24, 72])  # within the body, and within the head
@pytest.mark.parametrize("behind", [b"", b"POST /echo HTTP/1.1\r\nHost: h\r\nContent-Length: 3\r\n\r\nbad"])
async def test_a_request_with_another_upgrade_has_its_body(rest: bytes, cut: int, behind: bytes) -> None:
    head = b"POST /echo HTTP/1.1\r\nHost: h\r\nConnection: Upgrade\r\nUpgrade: h2c\r\n" + rest
    at = len(head) - cut
    async with serving(ScriptedBackplane(), endpoints=_ENDPOINTS) as harness:
        client = await harness.raw_ws()
        await client.send(head[:at])
        await asyncio.sleep(0)
        await client.send(head[at:] + behind)
        status, headers, body = await client.response()
        assert (status, headers["connection"], body) == (200, "close", b"hello")
        async with asyncio.timeout(60):
            assert await client.reader.read() == b""
        await client.close()


async def test_a_wrong_body_behind_another_upgrade_is_refused() -> None:
    async with serving(ScriptedBackplane(), endpoints=_ENDPOINTS) as harness:
        upgrade = b"Connection: Upgrade\r\nUpgrade: h2c\r\nTransfer-Encoding: chunked\r\n\r\n"
        client = await harness.raw_ws()
        await client.send(b"POST /echo HTTP/1.1\r\nHost: h\r\n" + upgrade + b"zz\r\n")
        assert (await client.response())[0] == 400
        await client.close()


async def test_a_body_that_is_expected_to_be_asked_for_is_asked_for() -> None:
    async with serving(ScriptedBackplane(), endpoints=_ENDPOINTS) as harness:
        client = await harness.raw_ws()
        head = b" HTTP/1.1\r\nHost: h\r\nContent-Length: 2\r\nExpect: 100-continue\r\n\r\n"
        await client.send(b"POST /echo" + head)
        assert (await client.response())[0] == 100
        await client.send(b"ok")
        assert (await client.response())[::2] == (200, b"ok")
        # One that nobody reads is not.
        await client.send(b"POST /" + head)
        assert (await client.response())[0] == 405
        await client.close()


@pytest.mark.parametrize(
    ("framing", "rest"), [(b"Content-Length: 2", b""), (b"Transfer-Encoding: chunked", b"zz\r\n")]
)
async def test_a_request_that_is_answered_before_its_body_has_one_answer(framing: bytes, rest: bytes) -> None:
    async with serving(ScriptedBackplane(), body_window_s=0.3, endpoints=_ENDPOINTS) as harness:
        client = await harness.raw_ws()
        await client.send(b"POST / HTTP/1.1\r\nHost: h\r\n%b\r\nExpect: 100-continue\r\n\r\n" % framing)
        assert (await client.response())[0] == 405
        await client.send(rest)
        async with asyncio.timeout(60):
            assert not await client.reader.read()
        await client.close()


async def test_a_body_that_stops_coming_ends_its_connection_and_frees_its_endpoint() -> None:
    upload = _Upload()
    async with serving(ScriptedBackplane(), body_window_s=1.0, endpoints=upload.endpoints) as harness:
        client = await harness.raw_ws()
        await client.send(b"POST /upload HTTP/1.1\r\nHost: h\r\nContent-Length: 1000000\r\n\r\n" + bytes(100))
        assert (await client.response())[0] == 408
        await wait_until(lambda: upload.num_gone == 1)
        await client.close()


_CHUNKED = b"POST /upload HTTP/1.1\r\nHost: h\r\nTransfer-Encoding: chunked\r\n\r\n"


@pytest.mark.parametrize("broken", [b"zz\r\n", b"2\r\nokay\r\n", b"2\r\nok\r\n0\r\n" + b"A: b\r\n" * 12_000])
async def test_a_body_that_cannot_be_read_on_is_refused_and_frees_its_endpoint(broken: bytes) -> None:
    upload = _Upload()
    async with serving(ScriptedBackplane(), body_window_s=1.0, endpoints=upload.endpoints) as harness:
        client = await harness.raw_ws()
        await client.send(_CHUNKED + broken)
        assert (await client.response())[0] in (400, 431)
        await wait_until(lambda: upload.num_gone == 1)
        site = harness.site
        assert site is not None
        await wait_until(lambda: not site.state.tasks)
        await client.close()


@pytest.mark.parametrize("behind", [b"GET / HTTP/1.1\r\nHost: h\r\n\r\n", _CHUNKED + b"zz\r\n"])
async def test_an_endpoint_learns_of_its_client_also_with_requests_behind_it(behind: bytes) -> None:
    began, gone = asyncio.Event(), asyncio.Event()

    async def upload(request: StarletteRequest) -> Response:
        await request.body()
        began.set()
        assert (await request.receive())["type"] == "http.disconnect"
        gone.set()
        return PlainTextResponse("")

    endpoints = (endpoint("/upload", upload, "POST"),)
    async with serving(ScriptedBackplane(), endpoints=endpoints) as harness:
        client = await harness.raw_ws()
        await client.send(b"POST /upload HTTP/1.1\r\nHost: h\r\nContent-Length: 2\r\n\r\nok" + behind)
        await began.wait()
        await client.close()
        async with asyncio.timeout(60):
            await gone.wait()


async def test_a_body_may_take_longer_than_its_window_while_it_grows_and_so_may_its_answer() -> None:
    async def upload(request: StarletteRequest) -> Response:
        size = len(await request.body())
        await asyncio.sleep(2)
        return PlainTextResponse(str(size))

    endpoints = (endpoint("/upload", upload, "POST"),)
    async with serving(ScriptedBackplane(), body_window_s=1.0, endpoints=endpoints) as harness:
        client = await harness.raw_ws()
        await client.send(b"POST /upload HTTP/1.1\r\nHost: h\r\nContent-Length: 80000\r\n\r\n")
        for _ in range(10):
            await client.send(bytes(8000))
            await asyncio.sleep(0.2)
        assert (await client.response())[2] == b"80000"
        await client.close()


async def test_a_body_of_nothing_but_tiny_chunks_ends_its_connection() -> None:
    gone = asyncio.Event()

    async def read(request: StarletteRequest) -> Response:
        try:
            await request.body()
        except ClientDisconnect:
            gone.set()
        return PlainTextResponse("")

    head = b"POST /read HTTP/1.1\r\nHost: h\r\nTransfer-Encoding: chunked\r\n\r\n"
    async with serving(ScriptedBackplane(), endpoints=(endpoint("/read", read, "POST"),)) as harness:
        client = await harness.raw_ws()
        client.writer.write(head + b"1\r\nR\r\n" * 2 * FREE_PARTS)
        async with asyncio.timeout(60):
            await gone.wait()
            with suppress(ConnectionError):
                assert await client.reader.read() == b""
        await client.close()


async def test_a_body_in_tiny_chunks_is_one_part_a_read(monkeypatch: pytest.MonkeyPatch) -> None:
    """Uvicorn copies all that waits for every part, and a read may hold forty thousand of them."""
    parts: list[int] = []
    handed_on = HttpToolsProtocol.on_body

    def note(protocol: HttpToolsProtocol, body: bytes) -> None:
        parts.append(len(body))
        handed_on(protocol, body)

    monkeypatch.setattr(HttpToolsProtocol, "on_body", note)
    text = b"".join(b"%d," % number for number in range(500))
    chunks = b"".join(b"1\r\n%c\r\n" % byte for byte in text)
    request = b"POST /echo HTTP/1.1\r\nHost: h\r\nTransfer-Encoding: chunked\r\n\r\n" + chunks + b"0\r\n\r\n"
    async with serving(ScriptedBackplane(), endpoints=_ENDPOINTS) as harness:
        client = await harness.raw_ws()
        # Two at once: what belongs to the first is with it before the second begins.
        await client.send(request + request)
        for _ in range(2):
            status, _, body = await client.response()
            assert (status, body) == (200, text)
        await client.close()
    assert sum(parts) == 2 * len(text)
    assert len(parts) < len(text) / 20
