"""The front of the WebSocket port, with real sockets: what each kind of request is answered."""

from __future__ import annotations

import asyncio
import json
import logging
import socket
from collections.abc import AsyncIterator
from contextlib import suppress
from http import HTTPStatus

import pytest
from starlette.requests import Request as StarletteRequest
from starlette.responses import PlainTextResponse, Response, StreamingResponse
from websockets.asyncio.client import connect
from websockets.frames import Frame, Opcode

from common.auth.api_key import KeyId
from common.auth.keys_file import KeyRecord
from ingress.auth.client import Client
from ingress.http.endpoints import endpoint
from ingress.http.front import MAX_HEADER_BYTES, MAX_REQUEST_LINE_BYTES, Front
from ingress.http.refusal import Refusal, Refused
from ingress.request import Request
from tests.fake_backplane import ScriptedBackplane
from tests.ingress_harness import HANDSHAKE, HOST, Harness, serving, wait_until

_KEY = b"Upgrade: websocket\r\nSec-WebSocket-Version: 13\r\nSec-WebSocket-Key: AAAAAAAAAAAAAAAAAAAAAA==\r\n"


_UPGRADE = b"Host: h\r\nConnection: Upgrade\r\n" + _KEY


async def _echo(request: StarletteRequest) -> Response:
    return PlainTextResponse(await request.body())


async def _big(request: StarletteRequest) -> Response:
    return PlainTextResponse(b"x" * 8_000_000)


async def _unread(request: StarletteRequest) -> Response:
    return PlainTextResponse("too large\n", HTTPStatus.REQUEST_ENTITY_TOO_LARGE)


_ENDPOINTS = (
    endpoint("/echo", _echo, "POST"),
    endpoint("/big", _big, "GET"),
    endpoint("/unread", _unread, "POST"),
)


async def _answer(harness: Harness, request: bytes) -> tuple[int, dict[str, str], bytes]:
    """The response to one request, whose connection then closes."""
    client = await harness.raw_ws()
    await client.send(request)
    response = await client.response(body=not request.startswith(b"HEAD"))
    async with asyncio.timeout(60):
        assert await client.reader.read() == b""
    await client.close()
    return response


@pytest.mark.parametrize(
    ("request_", "status"),
    [
        (b"GET /nowhere HTTP/1.1\r\nHost: h\r\nConnection: close\r\n\r\n", 404),
        (b"GET /ws HTTP/1.1\r\nHost: h\r\nConnection: close\r\n\r\n", 426),
        (b"POST / HTTP/1.1\r\nHost: h\r\nConnection: close\r\nContent-Length: 2\r\n\r\n{}", 405),
        (b"DELETE /nowhere HTTP/1.1\r\nHost: h\r\nConnection: close\r\n\r\n", 404),
        (b"hello there\r\n\r\n", 400),
        (b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03", 400),  # TLS
        (b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n", 400),
        (b"GET /\r\n\r\n", 505),
        (b"GET / HTTP/2.0\r\n\r\n", 505),
        (b"CONNECT h:80 HTTP/1.1\r\nHost: h\r\n\r\n", 400),
        (b"GET http://[ HTTP/1.1\r\nHost: h\r\n\r\n", 400),
        (b"POST / HTTP/1.1\r\nHost: h\r\nContent-Length: 5\r\nTransfer-Encoding: chunked\r\n\r\n", 400),
        (b"GET / HTTP/1.1\r\nHost: h\r\nA: b\r\n c\r\n\r\n", 400),  # a folded header
        (b"GET / HTTP/1.1\r\n\r\n", 400),
        (b"GET / HTTP/1.1\r\nHost: h\r\nHost: h\r\n\r\n", 400),
        (b"GET / HTTP/1.0\r\nHost: h\r\nHost: i\r\n\r\n", 400),
        (b"GET /ws HTTP/1.1\r\nConnection: Upgrade\r\n" + _KEY + b"\r\n", 400),
        (b"POST /echo HTTP/1.1\r\nHost: h\r\nContent-Encoding: gzip\r\nContent-Length: 2\r\n\r\nxx", 415),
        (b"POST /echo HTTP/1.1\r\nHost: h\r\nTransfer-Encoding: gzip, chunked\r\n\r\n0\r\n\r\n", 501),
        (b"GET /nowhere HTTP/1.1\r\n" + _UPGRADE + b"\r\n", 404),
        (b"GET / HTTP/1.1\r\n" + _UPGRADE.replace(b"13", b"12") + b"\r\n", 400),
        (b"GET / HTTP/1.1\r\n" + _UPGRADE.replace(b"AAAA", b"AA") + b"\r\n", 400),
        (b"GET / HTTP/1.1\r\n" + _UPGRADE + b"Content-Length: 2\r\n\r\n{}", 400),
        (b"GET / HTTP/1.1\r\n" + _UPGRADE + b"Transfer-Encoding: chunked\r\n\r\n0\r\n\r\n", 400),
        (b"POST / HTTP/1.1\r\n" + _UPGRADE.replace(b"Upgrade\r\n", b"Upgrade, close\r\n", 1) + b"\r\n", 405),
    ],
)
async def test_what_is_refused_has_a_status_and_a_sentence_which_the_log_has_too(
    request_: bytes, status: int, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, "ingress.http.refusals")
    async with serving(ScriptedBackplane()) as harness:
        got, headers, body = await _answer(harness, request_)
        assert got == status
        assert headers["content-type"].startswith("text/plain")
        assert body.endswith(b"\n")
        assert headers["date"].endswith("gmt")
        assert harness.backplane.links == []
    (line,) = (record.getMessage() for record in caplog.records)
    assert line.endswith(f": {body.decode().strip()}"[:200])


@pytest.mark.parametrize("path", ["/unread", "/nowhere"])
async def test_an_early_answer_is_read_by_a_client_that_sends_all_of_its_body_first(path: str) -> None:
    """A connection that is closed with unread input is reset, and the answer may be lost."""
    size = 16 << 20
    head = f"POST {path} HTTP/1.1\r\nHost: h\r\nConnection: close\r\nContent-Length: {size}\r\n\r\n"
    async with serving(ScriptedBackplane(), endpoints=_ENDPOINTS) as harness:
        got, headers, _ = await _answer(harness, head.encode() + bytes(size))
        assert got == (413 if path == "/unread" else 404)
        assert headers["connection"] == "close"


async def test_a_request_that_is_not_let_in_is_counted_and_logged_without_its_query(
    caplog: pytest.LogCaptureFixture,
) -> None:
    caplog.set_level(logging.INFO, "ingress.http.refusals")

    def nobody(request: Request) -> Client:
        raise Refused(Refusal(HTTPStatus.UNAUTHORIZED, "The key is not known."))

    async with serving(ScriptedBackplane(), authenticate=nobody, endpoints=_ENDPOINTS) as harness:
        client = await harness.raw_ws()
        await client.send(b"POST /echo?key=secret HTTP/1.1\r\nHost: h\r\nContent-Length: 2\r\n\r\nok")
        assert (await client.response())[0] == 401
        await client.close()
        assert harness.metrics.refused_requests["401"] == 1
        assert harness.metrics.auth_failures["scope"] == 0
    (line,) = (record.getMessage() for record in caplog.records)
    assert line == "refused: 401, POST /echo, key -: The key is not known."


async def test_what_endpoints_and_streams_refuse_is_noted_with_the_name_of_the_key(
    caplog: pytest.LogCaptureFixture,
) -> None:
    caplog.set_level(logging.INFO, "ingress.http.refusals")
    scopeless = Client(KeyRecord(key_id=KeyId("k1"), digest="", name="desk", scopes=()))

    async with serving(ScriptedBackplane(), authenticate=lambda request: scopeless) as harness:
        assert (await _answer(harness, b"GET /no\x01where HTTP/1.1\r\nHost: h\r\n\r\n"))[0] == 400
        nowhere = b"GET /nowhere HTTP/1.1\r\nHost: h\r\nConnection: close\r\n\r\n"
        assert (await _answer(harness, nowhere))[0] == 404
        assert (await _answer(harness, HANDSHAKE))[0] == 403
        counts = harness.metrics.refused_requests
        assert {status: count for status, count in counts.items() if count} == {"400": 1, "403": 1, "404": 1}
        assert harness.metrics.auth_failures["scope"] == 1
    first, second, third = (record.getMessage() for record in caplog.records)
    assert first == "refused: 400, no request, key -: This is no HTTP request."
    assert second == "refused: 404, GET /nowhere, key desk: There is nothing at this path."
    assert third.endswith("key desk: The key lacks the scope 'stream'.")


@pytest.mark.parametrize(
    ("line", "fits", "status"),
    [
        (b"GET /%s HTTP/1.1\r\n", 404, 414),
        (b"DELETE /%s HTTP/1.1\r\n", 404, 414),
        (b"GET /ws?terms=%s HTTP/1.1\r\n", 101, 414),
    ],
)
async def test_a_request_line_is_as_long_as_allowed_and_no_longer(
    line: bytes, fits: int, status: int
) -> None:
    async with serving(ScriptedBackplane()) as harness:
        room = MAX_REQUEST_LINE_BYTES - len(line.replace(b"%s", b""))
        rest = (_UPGRADE if fits == 101 else b"Host: h\r\nConnection: close\r\n") + b"\r\n"
        for size, expected in ((room, fits), (room + 1, status)):
            client = await harness.raw_ws()
            client.writer.write(line.replace(b"%s", b"x" * size) + rest)
            assert (await client.response())[0] == expected
            await client.close()


@pytest.mark.parametrize(
    ("header", "count"), [(b"A: %s\r\n", 1), (b"A: bcd%s\r\n", MAX_HEADER_BYTES // 8 - 9)]
)
async def test_headers_are_as_long_as_allowed_and_no_longer(header: bytes, count: int) -> None:
    async with serving(ScriptedBackplane()) as harness:
        fixed = b"Host: h\r\nConnection: close\r\n" + header.replace(b"%s", b"") * (count - 1)
        room = MAX_HEADER_BYTES - len(fixed) - len(header.replace(b"%s", b""))
        for size, expected in ((room, 200), (room + 1, 431)):
            client = await harness.raw_ws()
            headers = fixed + header.replace(b"%s", b"x" * size)
            assert len(headers) == MAX_HEADER_BYTES + (expected == 431)
            client.writer.write(b"GET / HTTP/1.1\r\n" + headers + b"\r\n")
            assert (await client.response())[0] == expected
            await client.close()


@pytest.mark.parametrize(
    ("begin", "status"),
    [
        (b"GET /", 414),
        (b"GET / HTTP/1.1\r\nA: ", 431),
        (b"POST /echo HTTP/1.1\r\nA: b\r\n", 431),
        (b"", 400),
    ],
)
async def test_a_head_without_end_is_refused_at_its_bound(begin: bytes, status: int) -> None:
    async with serving(ScriptedBackplane(), endpoints=_ENDPOINTS) as harness:
        client = await harness.raw_ws()
        client.writer.write(begin)
        piece = b"c: dddd\r\n" * 1000 if begin.endswith(b"\n") else b"x" * 9000
        for _ in range(40):
            client.writer.write(piece)
            with suppress(ConnectionError):
                await client.writer.drain()
        got, _, _ = await client.response()
        assert got == status
        await client.close()


async def test_a_defect_of_ours_is_logged_and_told_as_one(caplog: pytest.LogCaptureFixture) -> None:
    def broken(request: Request) -> Client:
        raise RuntimeError("a defect")

    async with serving(ScriptedBackplane(), authenticate=broken) as harness:
        status, _, body = await _answer(harness, b"GET / HTTP/1.1\r\nHost: h\r\n\r\n")
        assert status == 500
        assert b"defect" not in body
        assert (await _answer(harness, HANDSHAKE))[0] == 500
        assert harness.backplane.links == []
    records = [record for record in caplog.records if record.name == "ingress.http.refusal"]
    assert ["a defect" in str(record.exc_info) for record in records] == [True, True]


async def test_a_person_gets_a_page_and_head_the_same_without_it() -> None:
    async with serving(ScriptedBackplane()) as harness:
        client = await harness.raw_ws()
        await client.send(b"GET / HTTP/1.1\r\nHost: h\r\n\r\n")
        status, headers, body = await client.response()
        assert status == 200
        assert headers["content-type"] == "text/html; charset=utf-8"
        assert b"<title>Parakeet server</title>" in body
        await client.send(b"HEAD / HTTP/1.1\r\nHost: h\r\n\r\n")
        head_status, head_headers, _ = await client.response(body=False)
        assert head_status == 200
        assert head_headers | {"date": ""} == headers | {"date": ""}
        for target in (b"/", b"*", b"/ws"):
            await client.send(b"OPTIONS " + target + b" HTTP/1.1\r\nHost: h\r\n\r\n")
            options_status, options_headers, _ = await client.response()
            assert (options_status, options_headers["allow"]) == (204, "get, head, options")
        await client.close()


async def test_http_1_0_is_served_and_closed() -> None:
    async with serving(ScriptedBackplane()) as harness:
        status, headers, body = await _answer(harness, b"GET / HTTP/1.0\r\n\r\n")
        assert (status, headers["connection"]) == (200, "close")
        assert b"Parakeet server" in body
        # It knows no upgrades (RFC 9110, section 7.8).
        status, _, _ = await _answer(harness, b"GET / HTTP/1.0\r\n" + _UPGRADE + b"\r\n")
        assert status == 200


async def test_pipelined_requests_are_answered_in_order() -> None:
    async with serving(ScriptedBackplane(), endpoints=_ENDPOINTS) as harness:
        client = await harness.raw_ws()
        requests = [b"POST /echo HTTP/1.1\r\nHost: h\r\nContent-Length: 1\r\n\r\n%d" % n for n in range(9)]
        await client.send(b"".join(requests))
        assert [(await client.response())[2] for _ in requests] == [b"%d" % n for n in range(9)]
        await client.close()


async def test_too_many_pipelined_requests_end_the_connection_behind_those_before() -> None:
    async with serving(ScriptedBackplane(), endpoints=_ENDPOINTS) as harness:
        client = await harness.raw_ws()
        await client.send(b"POST /echo HTTP/1.1\r\nHost: h\r\nContent-Length: 2\r\n\r\nok" * 1000)
        async with asyncio.timeout(60):
            data = await client.reader.read()
        assert data.count(b"HTTP/1.1 200") == data.count(b"\r\n\r\nok") == 17
        await client.close()


async def test_a_websocket_may_follow_a_request_on_its_connection() -> None:
    async with serving(ScriptedBackplane(echo=True)) as harness:
        client = await harness.raw_ws()
        await client.send(b"GET / HTTP/1.1\r\nHost: h\r\n\r\n")
        assert (await client.response())[0] == 200
        close = Frame(Opcode.TEXT, b'{"type":"close"}').serialize(mask=True)
        await client.send(HANDSHAKE + close)
        assert (await client.response())[0] == 101
        async with asyncio.timeout(60):
            await client.reader.readuntil(b'"is_final":true')
        await client.close()
        await wait_until(lambda: not harness.connections)


async def test_a_websocket_is_not_opened_behind_a_request_without_an_answer() -> None:
    async with serving(ScriptedBackplane(), endpoints=_ENDPOINTS) as harness:
        client = await harness.raw_ws()
        await client.send(b"POST /echo HTTP/1.1\r\nHost: h\r\nContent-Length: 2\r\n\r\nok" + HANDSHAKE)
        async with asyncio.timeout(60):
            data = await client.reader.read()
        assert data.startswith(b"HTTP/1.1 200")
        assert data.endswith(b"ok")
        await client.close()
        assert harness.backplane.links == []


async def test_another_upgrade_is_not_taken() -> None:
    async with serving(ScriptedBackplane()) as harness:
        request = b"GET / HTTP/1.1\r\nHost: h\r\nConnection: Upgrade\r\nUpgrade: h2c\r\n\r\n"
        status, headers, body = await _answer(harness, request)
        assert (status, headers["connection"]) == (200, "close")
        assert b"Parakeet server" in body


async def test_a_half_closed_client_has_its_answer() -> None:
    async with serving(ScriptedBackplane()) as harness:
        client = await harness.raw_ws()
        client.writer.write(b"GET / HTTP/1.1\r\nHost: h\r\n\r\n")
        client.writer.write_eof()
        assert (await client.response())[0] == 200
        assert await client.reader.read() == b""
        await client.close()


async def test_a_probe_of_a_half_closed_client_breaks_into_no_answer(monkeypatch: pytest.MonkeyPatch) -> None:
    probed = asyncio.Event()
    probe = Front._probe

    def noted(front: Front) -> None:
        probe(front)
        probed.set()

    async def parts() -> AsyncIterator[bytes]:
        yield b"a"
        await probed.wait()
        yield b"b"

    async def slow(request: StarletteRequest) -> Response:
        return StreamingResponse(parts(), headers={"Content-Length": "2"})

    monkeypatch.setattr(Front, "_probe", noted)
    monkeypatch.setattr("ingress.http.front._PROBE_EVERY_S", 0.01)
    endpoints = (endpoint("/slow", slow, "GET"),)
    async with serving(ScriptedBackplane(), endpoints=endpoints) as harness:
        client = await harness.raw_ws()
        client.writer.write(b"GET /slow HTTP/1.1\r\nHost: h\r\n\r\n" * 2)
        await client.reader.readuntil(b"\r\n\r\na")
        client.writer.write_eof()
        async with asyncio.timeout(60):
            data = await client.reader.read()
        assert data.startswith(b"bHTTP/1.1 ")  # an interim response may come before the second answer
        assert data.endswith(b"\r\n\r\nab")
        await client.close()


@pytest.mark.parametrize("sent", [b"", b"GET / HTTP/1.1\r\n", b"\r\n", b"\r\n" * 5000])
async def test_a_head_that_does_not_come_is_not_waited_for(sent: bytes) -> None:
    async with serving(ScriptedBackplane(), handshake_timeout_s=0.1) as harness:
        assert (await _answer(harness, sent))[0] == 408


@pytest.mark.parametrize("between", [b"", b"\r\n"])
async def test_a_connection_without_a_request_is_closed(between: bytes) -> None:
    async with serving(ScriptedBackplane(), handshake_timeout_s=2.0, keep_alive_s=0.1) as harness:
        client = await harness.raw_ws()
        await client.send(b"GET / HTTP/1.1\r\nHost: h\r\n\r\n")
        assert (await client.response())[0] == 200
        await client.send(between)
        async with asyncio.timeout(60):
            assert await client.reader.read() == b""
        await client.close()


async def test_a_head_that_stops_on_a_kept_connection_is_not_waited_for() -> None:
    async with serving(ScriptedBackplane(), handshake_timeout_s=2.0) as harness:
        client = await harness.raw_ws()
        await client.send(b"GET / HTTP/1.1\r\nHost: h\r\n\r\n")
        assert (await client.response())[0] == 200
        await client.send(b"GET / HTTP/1.1\r\nHost: ")
        assert (await client.response())[0] == 408
        await client.close()


async def test_a_client_that_does_not_read_its_answer_is_dropped(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("ingress.http.front.UNREAD_TIMEOUT_S", 0.2)
    async with serving(ScriptedBackplane(), endpoints=_ENDPOINTS) as harness:
        client = socket.create_connection((HOST, harness.ws_port))
        harness.sockets.append(client)
        client.setblocking(False)
        await asyncio.get_running_loop().sock_sendall(client, b"GET /big HTTP/1.1\r\nHost: h\r\n\r\n")
        await wait_until(lambda: bool(harness.transports))
        await wait_until(harness.transports[0].is_closing)


async def test_authentication_comes_before_everything() -> None:
    judged: list[Request] = []

    def nobody(request: Request) -> Client:
        judged.append(request)
        raise Refused(Refusal(HTTPStatus.UNAUTHORIZED, "Who are you?", (("WWW-Authenticate", "Bearer"),)))

    async with serving(ScriptedBackplane(), authenticate=nobody, endpoints=_ENDPOINTS) as harness:
        client = await harness.raw_ws()
        for _ in range(2):
            await client.send(b"POST /echo?a=b HTTP/1.1\r\nHost: h\r\nX: Y\r\nContent-Length: 2\r\n\r\nok")
            status, headers, body = await client.response()
            assert (status, headers["www-authenticate"], body) == (401, "bearer", b"Who are you?\n")
        await client.send(HANDSHAKE.replace(b"GET /", b"GET /ws?token=%20"))
        status, headers, _ = await client.response()
        assert (status, headers["www-authenticate"]) == (401, "bearer")
        await client.close()
        assert harness.backplane.links == []
    assert [(r.method, r.path, r.query, r.address) for r in judged] == [
        ("POST", "/echo", "a=b", "127.0.0.1"),
        ("POST", "/echo", "a=b", "127.0.0.1"),
        ("GET", "/ws", "token=%20", "127.0.0.1"),
    ]
    assert judged[0].header("x") == "Y"
    assert judged[0].header("y") is None


@pytest.mark.parametrize("path", ["/", "/ws", "/?token=x", "/ws?terms=" + "x" * 60_000])
async def test_a_stream_at_each_of_its_paths(path: str) -> None:
    async with (
        serving(ScriptedBackplane(echo=True)) as harness,
        connect(harness.ws_url + path) as client,
    ):
        assert json.loads(await client.recv())["type"] == "hello"
        (request,) = harness.requests
        assert (request.path, request.query) == tuple(path.partition("?")[::2])
        await client.send(b"\0\0" * 5)
        assert json.loads(await client.recv())["text"] == "5 samples"


async def test_a_drain_ends_connections_without_a_stream() -> None:
    async with serving(ScriptedBackplane()) as harness:
        idle = await harness.raw_ws()
        used = await harness.raw_ws()
        await used.send(b"GET / HTTP/1.1\r\nHost: h\r\n\r\n")
        assert (await used.response())[0] == 200
        assert harness.site is not None
        harness.site.drain()
        for client in (idle, used):
            async with asyncio.timeout(60):
                assert await client.reader.read() == b""
            await client.close()


async def test_a_head_cut_anywhere_is_the_same_head() -> None:
    async with serving(ScriptedBackplane(echo=True)) as harness:
        close = Frame(Opcode.TEXT, b'{"type":"close"}').serialize(mask=True)
        data = HANDSHAKE + close
        for cut in range(1, len(data), 7):
            client = await harness.raw_ws()
            client.writer.get_extra_info("socket").setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            await client.send(data[:cut])
            await asyncio.sleep(0)
            await client.send(data[cut:])
            async with asyncio.timeout(60):
                answer = await client.reader.readuntil(b'"is_final":true')
            assert answer.startswith(b"HTTP/1.1 101")
            await client.close()
