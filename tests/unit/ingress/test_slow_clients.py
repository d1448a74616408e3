"""Clients that send a byte at a time, so as to hold what a server has for them: none holds it for long."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from typing import Any

import pytest
from starlette.requests import Request
from starlette.responses import PlainTextResponse, Response

from ingress.api.openai_errors import openai_refusal
from ingress.dialects.deepgram import refusals
from ingress.http.endpoints import endpoint
from ingress.http.refusal import RefusalShape
from ingress.sockets.turns import Turn, Turns
from tests.fake_backplane import ScriptedBackplane
from tests.ingress_harness import HANDSHAKE, TcpClient, serving, wait_until

_LONG = b"x" * 60_000


@asynccontextmanager
async def dripping(client: TcpClient, data: bytes) -> AsyncIterator[None]:
    """Send a byte now and then, as long as the server takes it."""

    async def drip() -> None:
        for at in range(len(data)):
            await client.send(data[at : at + 1])
            await asyncio.sleep(0.01)

    dripping = asyncio.create_task(drip())
    try:
        yield
    finally:
        dripping.cancel()
        with suppress(asyncio.CancelledError, ConnectionError):
            await dripping
        client.writer.transport.abort()


@pytest.mark.parametrize(
    "data",
    [
        b"GET /" + _LONG,
        b"GET / HTTP/1.1\r\nX: " + _LONG,
        b"GET / HTTP/1.1\r\n" + b"A: b\r\n" * 5_000,
        HANDSHAKE[:-2] + b"X: " + _LONG,
        b"\r\n" * 1000,
    ],
    ids=["line", "header", "headers", "handshake", "blank"],
)
async def test_a_head_that_drips_ends_in_time(data: bytes) -> None:
    async with serving(ScriptedBackplane(), handshake_timeout_s=0.3) as harness:
        client = await harness.raw_ws()
        async with dripping(client, data), asyncio.timeout(60):
            assert (await client.reader.readline()).startswith(b"HTTP/1.1 408")
        assert harness.backplane.links == []


async def _read(request: Request) -> Response:
    return PlainTextResponse(str(len(await request.body())))


@pytest.mark.parametrize("framing", [b"Content-Length: 60000", b"Transfer-Encoding: chunked"])
@pytest.mark.parametrize(
    ("path", "shape", "says"),
    [
        (b"/plain", None, b"bytes of the body came in 0.3 s."),
        (b"/openai", openai_refusal, b'"code":"request_timeout"'),
        (b"/deepgram", refusals.shaped, b'"err_code":"SLOW_UPLOAD"'),
    ],
)
async def test_a_body_that_drips_ends_with_408_in_the_words_of_its_path(
    framing: bytes, path: bytes, shape: RefusalShape | None, says: bytes
) -> None:
    name = path.decode()
    endpoints = (endpoint(name, _read, "POST"),)
    shapes = {} if shape is None else {name: shape}
    async with serving(ScriptedBackplane(), body_window_s=0.3, endpoints=endpoints, shapes=shapes) as harness:
        client = await harness.raw_ws()
        await client.send(b"POST %b HTTP/1.1\r\nHost: h\r\n%b\r\n\r\n" % (path, framing))
        drops = b"1\r\n0\r\n" * 10_000 if b"chunked" in framing else _LONG
        async with dripping(client, drops), asyncio.timeout(60):
            answer = await client.reader.readuntil(b"\r\n\r\n")
            length = int(answer.lower().partition(b"content-length: ")[2].partition(b"\r\n")[0])
            body = await client.reader.readexactly(length)
        assert answer.startswith(b"HTTP/1.1 408")
        assert says in body
        site = harness.site
        assert site is not None
        await wait_until(lambda: not site.state.tasks)
        assert site.num_slow_bodies == 1


async def test_each_window_of_a_body_has_its_bytes_whatever_came_before() -> None:
    endpoints = (endpoint("/read", _read, "POST"),)
    async with serving(ScriptedBackplane(), body_window_s=0.3, endpoints=endpoints) as harness:
        client = await harness.raw_ws()
        head = b"POST /read HTTP/1.1\r\nHost: h\r\nContent-Length: 9000000\r\n\r\n"
        await client.send(head + bytes(1_000_000))
        async with dripping(client, _LONG), asyncio.timeout(60):
            assert (await client.reader.readline()).startswith(b"HTTP/1.1 408")


async def test_a_slow_body_comes_whole_where_slow_ones_are_let_in() -> None:
    endpoints = (endpoint("/read", _read, "POST"),)
    async with serving(
        ScriptedBackplane(), body_window_s=1.0, min_body_rate=1, endpoints=endpoints
    ) as harness:
        client = await harness.raw_ws()
        await client.send(b"POST /read HTTP/1.1\r\nHost: h\r\nContent-Length: 200\r\n\r\n")
        async with dripping(client, _LONG[:200]), asyncio.timeout(60):
            assert (await client.reader.readline()).startswith(b"HTTP/1.1 200")


@pytest.mark.parametrize("part", ["head", "body"])
async def test_a_client_that_waits_for_its_turn_is_not_slow(
    part: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What the ingress has not read yet was sent in time."""
    endpoints = (endpoint("/read", _read, "POST"),)
    head = b"POST /read HTTP/1.1\r\nHost: h\r\nContent-Length: 100000\r\n\r\n"
    async with serving(ScriptedBackplane(), endpoints=endpoints) as harness:
        client = await harness.raw_ws()
        site = harness.site
        assert site is not None
        if part == "body":
            await client.send(head)
            await wait_until(lambda: bool(site.state.tasks))
        waiting: list[Turn] = []
        with monkeypatch.context() as patch:
            patch.setattr(Turns, "at_once", lambda turns, turn: False)
            patch.setattr(Turns, "ask", lambda turns, turn: waiting.append(turn))
            await client.send((head if part == "head" else b"") + bytes(100_000))
            await wait_until(lambda: bool(waiting))
            front: Any = harness.transports[-1].get_protocol()
            if part == "head":
                front._stop_waiting()
                front._too_slow(5.0)
            else:
                front._stop_watching_body()
                front._look_at_body()
        (turn,) = waiting
        turn()
        async with asyncio.timeout(60):
            assert (await client.reader.readline()).startswith(b"HTTP/1.1 200")
        assert site.num_slow_bodies == 0
        client.writer.transport.abort()


async def test_a_line_that_drips_holds_no_slot() -> None:
    backplane = ScriptedBackplane()
    async with serving(backplane, begin_timeout_s=0.3) as harness:
        client = await harness.tcp()
        await client.receive()
        async with dripping(client, b'{"type":"audio","data":"' + _LONG):
            await wait_until(lambda: backplane.link.log == ["abandon"])


async def test_a_stranger_that_drips_its_key_is_hung_up_on() -> None:
    async with serving(ScriptedBackplane(), begin_timeout_s=0.3, strangers=True) as harness:
        client = await harness.tcp()
        async with dripping(client, b'{"type":"auth","token":"' + _LONG):
            assert (await client.receive())["code"] == "unauthorized"
            assert harness.backplane.links == []


async def test_a_frame_that_drips_and_answers_no_pings_is_hung_up_on() -> None:
    backplane = ScriptedBackplane()
    async with serving(backplane, ping_interval_s=0.1) as harness:
        client = await harness.raw_ws()
        await client.send(HANDSHAKE)
        async with dripping(client, b"\x82\xfe\xff\xff" + _LONG):
            await wait_until(lambda: bool(backplane.links) and backplane.link.log == ["abandon"])
