"""The front of the WebSocket port, with real sockets: what each kind of request is answered."""

from __future__ import annotations

import asyncio
import json
import logging
import socket
from contextlib import suppress
from http import HTTPStatus

import pytest
from starlette.requests import ClientDisconnect
from starlette.requests import Request as StarletteRequest
from starlette.responses import PlainTextResponse, Response
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol
from websockets.asyncio.client import connect
from websockets.frames import Frame, Opcode

from common.auth.api_key import KeyId
from common.auth.keys_file import KeyRecord
from ingress.auth.client import Client
from ingress.http.endpoints import endpoint
from ingress.http.front import FREE_PARTS, MAX_HEADER_BYTES, MAX_REQUEST_LINE_BYTES, Front
from ingress.http.refusal import Refusal, Refused
from ingress.request import Request
from tests.fake_backplane import ScriptedBackplane
from tests.ingress_harness import HANDSHAKE, HOST, Harness, TcpClient, serving, wait_until

_KEY = b"Upgrade: websocket\r\nSec-WebSocket-Version: 13\r\nSec-WebSocket-Key: AAAAAAAAAAAAAAAAAAAAAA==\r\n"
_UPGRADE = b"Host: h\r\nConnection: Upgrade\r\n" + _KEY


async def _echo(request: StarletteRequest) -> Response:
    return PlainTextResponse(await request.body())


async def _big(request: StarletteRequest) -> Response:
    return PlainTextResponse(b"x" * 8_000_000)


_ENDPOINTS = (endpoint("/echo", _echo, "POST"), endpoint("/big", _big, "GET"))


async def _response(client: TcpClient, *, body: bool = True) -> tuple[int, dict[str, str], bytes]:
    """Status, headers and body of the next response."""
    async with asyncio.timeout(5):
        head = (await client.reader.readuntil(b"\r\n\r\n")).decode("latin-1").splitlines()
        headers = dict(line.lower().split(": ", 1) for line in head[1:] if line)
        length = int(headers.get("content-length", 0)) if body else 0
        return int(head[0].split()[1]), headers, await client.reader.readexactly(length)


async def _answer(harness: Harness, request: bytes) -> tuple[int, dict[str, str], bytes]:
    """The response to one request, whose connection then closes."""
    client = await harness.raw_ws()
    await client.send(request)
    response = await _response(client, body=not request.startswith(b"HEAD"))
    async with asyncio.timeout(5):
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
        (b"POST / HTTP/1.1\r\nContent-Length: 5\r\nTransfer-Encoding: chunked\r\n\r\n", 400),
        (b"GET / HTTP/1.1\r\nA: b\r\n c\r\n\r\n", 400),  # a folded header
        (b"GET /nowhere HTTP/1.1\r\n" + _UPGRADE + b"\r\n", 404),
        (b"GET / HTTP/1.1\r\n" + _UPGRADE.replace(b"13", b"12") + b"\r\n", 400),
        (b"GET / HTTP/1.1\r\n" + _UPGRADE.replace(b"AAAA", b"AA") + b"\r\n", 400),
        (b"GET / HTTP/1.1\r\n" + _UPGRADE + b"Content-Length: 2\r\n\r\n{}", 400),
        (b"GET / HTTP/1.1\r\n" + _UPGRADE + b"Transfer-Encoding: chunked\r\n\r\n0\r\n\r\n", 400),
        (b"POST / HTTP/1.1\r\n" + _UPGRADE.replace(b"Upgrade\r\n", b"Upgrade, close\r\n", 1) + b"\r\n", 405),
    ],
)
async def test_what_is_refused_has_a_status_and_a_sentence(request_: bytes, status: int) -> None:
    async with serving(ScriptedBackplane()) as harness:
        got, headers, body = await _answer(harness, request_)
        assert got == status
        assert headers["content-type"].startswith("text/plain")
        assert body.endswith(b"\n")
        assert headers["date"].endswith("gmt")
        assert harness.backplane.links == []


async def test_a_request_that_is_not_let_in_is_counted_and_logged_without_its_query(
    caplog: pytest.LogCaptureFixture,
) -> None:
    caplog.set_level(logging.INFO, "ingress.http.refusals")

    def nobody(request: Request) -> Client:
        raise Refused(Refusal(HTTPStatus.UNAUTHORIZED, "The key is not known."))

    async with serving(ScriptedBackplane(), authenticate=nobody, endpoints=_ENDPOINTS) as harness:
        client = await harness.raw_ws()
        await client.send(b"POST /echo?key=secret HTTP/1.1\r\nContent-Length: 2\r\n\r\nok")
        assert (await _response(client))[0] == 401
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
    assert second == "refused: 404, GET /nowhere, key desk: Not Found"
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
        rest = (_UPGRADE if fits == 101 else b"Connection: close\r\n") + b"\r\n"
        for size, expected in ((room, fits), (room + 1, status)):
            client = await harness.raw_ws()
            client.writer.write(line.replace(b"%s", b"x" * size) + rest)
            assert (await _response(client))[0] == expected
            await client.close()


@pytest.mark.parametrize(
    ("header", "count"), [(b"A: %s\r\n", 1), (b"A: bcd%s\r\n", MAX_HEADER_BYTES // 8 - 8)]
)
async def test_headers_are_as_long_as_allowed_and_no_longer(header: bytes, count: int) -> None:
    async with serving(ScriptedBackplane()) as harness:
        fixed = b"Connection: close\r\n" + header.replace(b"%s", b"") * (count - 1)
        room = MAX_HEADER_BYTES - len(fixed) - len(header.replace(b"%s", b""))
        for size, expected in ((room, 200), (room + 1, 431)):
            client = await harness.raw_ws()
            headers = fixed + header.replace(b"%s", b"x" * size)
            assert len(headers) == MAX_HEADER_BYTES + (expected == 431)
            client.writer.write(b"GET / HTTP/1.1\r\n" + headers + b"\r\n")
            assert (await _response(client))[0] == expected
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
        got, _, _ = await _response(client)
        assert got == status
        await client.close()


@pytest.mark.parametrize("trailer", [b"x" * 9000, b"c: dddd\r\n" * 1000])
async def test_trailers_without_end_are_refused_at_their_bound(trailer: bytes) -> None:
    async with serving(ScriptedBackplane(), endpoints=_ENDPOINTS) as harness:
        client = await harness.raw_ws()
        client.writer.write(b"POST /echo HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\n2\r\nok\r\n0\r\nA: b")
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
        client.writer.write(b"POST /echo HTTP/1.1\r\nContent-Length: 3\r\n\r\nok")
        client.writer.write_eof()
        async with asyncio.timeout(5):
            assert await client.reader.read() == b""
        site = harness.site
        assert site is not None
        await wait_until(lambda: not site.state.tasks)
        await client.close()
    assert [record.getMessage() for record in caplog.records if record.levelname == "ERROR"] == []


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
        status, headers, body = await _response(client)
        assert status == 200
        assert headers["content-type"] == "text/html; charset=utf-8"
        assert b"<title>Parakeet server</title>" in body
        await client.send(b"HEAD / HTTP/1.1\r\nHost: h\r\n\r\n")
        head_status, head_headers, _ = await _response(client, body=False)
        assert head_status == 200
        assert head_headers | {"date": ""} == headers | {"date": ""}
        for target in (b"/", b"*", b"/ws"):
            await client.send(b"OPTIONS " + target + b" HTTP/1.1\r\nHost: h\r\n\r\n")
            options_status, options_headers, _ = await _response(client)
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
        requests = [b"POST /echo HTTP/1.1\r\nContent-Length: 1\r\n\r\n%d" % n for n in range(9)]
        await client.send(b"".join(requests))
        assert [(await _response(client))[2] for _ in requests] == [b"%d" % n for n in range(9)]
        await client.close()


async def test_too_many_pipelined_requests_end_the_connection_behind_those_before() -> None:
    async with serving(ScriptedBackplane(), endpoints=_ENDPOINTS) as harness:
        client = await harness.raw_ws()
        await client.send(b"POST /echo HTTP/1.1\r\nContent-Length: 2\r\n\r\nok" * 1000)
        async with asyncio.timeout(5):
            data = await client.reader.read()
        assert data.count(b"HTTP/1.1 200") == data.count(b"\r\n\r\nok") == 17
        await client.close()


async def test_a_websocket_may_follow_a_request_on_its_connection() -> None:
    async with serving(ScriptedBackplane(echo=True)) as harness:
        client = await harness.raw_ws()
        await client.send(b"GET / HTTP/1.1\r\nHost: h\r\n\r\n")
        assert (await _response(client))[0] == 200
        close = Frame(Opcode.TEXT, b'{"type":"close"}').serialize(mask=True)
        await client.send(HANDSHAKE + close)
        assert (await _response(client))[0] == 101
        async with asyncio.timeout(5):
            await client.reader.readuntil(b'"is_final":true')
        await client.close()
        await wait_until(lambda: not harness.connections)


async def test_a_websocket_is_not_opened_behind_a_request_without_an_answer() -> None:
    async with serving(ScriptedBackplane(), endpoints=_ENDPOINTS) as harness:
        client = await harness.raw_ws()
        await client.send(b"POST /echo HTTP/1.1\r\nContent-Length: 2\r\n\r\nok" + HANDSHAKE)
        async with asyncio.timeout(5):
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


@pytest.mark.parametrize(
    "rest",
    [
        b"Content-Length: 5\r\n\r\nhello",
        b"Transfer-Encoding: chunked\r\n\r\n2\r\nhe\r\n3\r\nllo\r\n0\r\nA: b\r\n\r\n",
    ],
)
@pytest.mark.parametrize("cut", [3, 24, 72])  # within the body, and within the head
@pytest.mark.parametrize("behind", [b"", b"POST /echo HTTP/1.1\r\nContent-Length: 3\r\n\r\nbad"])
async def test_a_request_with_another_upgrade_has_its_body(rest: bytes, cut: int, behind: bytes) -> None:
    head = b"POST /echo HTTP/1.1\r\nHost: h\r\nConnection: Upgrade\r\nUpgrade: h2c\r\n" + rest
    at = len(head) - cut
    async with serving(ScriptedBackplane(), endpoints=_ENDPOINTS) as harness:
        client = await harness.raw_ws()
        await client.send(head[:at])
        await asyncio.sleep(0)
        await client.send(head[at:] + behind)
        status, headers, body = await _response(client)
        assert (status, headers["connection"], body) == (200, "close", b"hello")
        async with asyncio.timeout(5):
            assert await client.reader.read() == b""
        await client.close()


async def test_a_wrong_body_behind_another_upgrade_is_refused() -> None:
    async with serving(ScriptedBackplane(), endpoints=_ENDPOINTS) as harness:
        upgrade = b"Connection: Upgrade\r\nUpgrade: h2c\r\nTransfer-Encoding: chunked\r\n\r\n"
        status, _, _ = await _answer(harness, b"POST /echo HTTP/1.1\r\nHost: h\r\n" + upgrade + b"zz\r\n")
        assert status == 400


async def test_a_body_that_is_expected_to_be_asked_for_is_asked_for() -> None:
    async with serving(ScriptedBackplane(), endpoints=_ENDPOINTS) as harness:
        client = await harness.raw_ws()
        head = b" HTTP/1.1\r\nContent-Length: 2\r\nExpect: 100-continue\r\n\r\n"
        await client.send(b"POST /echo" + head)
        assert (await _response(client))[0] == 100
        await client.send(b"ok")
        assert (await _response(client))[::2] == (200, b"ok")
        # One that nobody reads is not.
        await client.send(b"POST /" + head)
        assert (await _response(client))[0] == 405
        await client.close()


async def test_a_half_closed_client_has_its_answer() -> None:
    async with serving(ScriptedBackplane()) as harness:
        client = await harness.raw_ws()
        client.writer.write(b"GET / HTTP/1.1\r\nHost: h\r\n\r\n")
        client.writer.write_eof()
        assert (await _response(client))[0] == 200
        assert await client.reader.read() == b""
        await client.close()


@pytest.mark.parametrize("sent", [b"", b"GET / HTTP/1.1\r\n", b"\r\n", b"\r\n" * 5000])
async def test_a_head_that_does_not_come_is_not_waited_for(sent: bytes) -> None:
    async with serving(ScriptedBackplane(), handshake_timeout_s=0.1) as harness:
        assert (await _answer(harness, sent))[0] == 408


@pytest.mark.parametrize("between", [b"", b"\r\n"])
async def test_a_connection_without_a_request_is_closed(between: bytes) -> None:
    async with serving(ScriptedBackplane(), handshake_timeout_s=0.3, keep_alive_s=0.1) as harness:
        client = await harness.raw_ws()
        await client.send(b"GET / HTTP/1.1\r\nHost: h\r\n\r\n")
        assert (await _response(client))[0] == 200
        await client.send(between)
        async with asyncio.timeout(5):
            assert await client.reader.read() == b""
        await client.close()


async def test_a_head_that_stops_on_a_kept_connection_is_not_waited_for() -> None:
    async with serving(ScriptedBackplane(), handshake_timeout_s=0.1) as harness:
        client = await harness.raw_ws()
        await client.send(b"GET / HTTP/1.1\r\nHost: h\r\n\r\n")
        assert (await _response(client))[0] == 200
        await client.send(b"GET / HTTP/1.1\r\nHost: ")
        assert (await _response(client))[0] == 408
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
            await client.send(b"POST /echo?a=b HTTP/1.1\r\nX: Y\r\nContent-Length: 2\r\n\r\nok")
            status, headers, body = await _response(client)
            assert (status, headers["www-authenticate"], body) == (401, "bearer", b"Who are you?\n")
        await client.send(HANDSHAKE.replace(b"GET /", b"GET /ws?token=%20"))
        status, headers, _ = await _response(client)
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
        assert (await _response(used))[0] == 200
        assert harness.site is not None
        harness.site.drain()
        for client in (idle, used):
            async with asyncio.timeout(5):
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
            async with asyncio.timeout(5):
                answer = await client.reader.readuntil(b'"is_final":true')
            assert answer.startswith(b"HTTP/1.1 101")
            await client.close()


async def test_a_body_that_stops_coming_ends_its_connection_and_frees_its_endpoint() -> None:
    gone: list[bool] = []

    async def upload(request: StarletteRequest) -> Response:
        try:
            return PlainTextResponse(await request.body())
        except ClientDisconnect:
            gone.append(True)
            raise

    endpoints = (endpoint("/upload", upload, "POST"),)
    async with serving(ScriptedBackplane(), body_window_s=0.2, endpoints=endpoints) as harness:
        client = await harness.raw_ws()
        await client.send(b"POST /upload HTTP/1.1\r\nHost: h\r\nContent-Length: 1000000\r\n\r\n" + bytes(100))
        assert (await _response(client))[0] == 408
        await wait_until(lambda: gone == [True])
        await client.close()


_CHUNKED = b"POST /upload HTTP/1.1\r\nHost: h\r\nTransfer-Encoding: chunked\r\n\r\n"


@pytest.mark.parametrize("broken", [b"zz\r\n", b"2\r\nokay\r\n", b"2\r\nok\r\n0\r\n" + b"A: b\r\n" * 12_000])
async def test_a_body_that_cannot_be_read_on_is_refused_and_frees_its_endpoint(broken: bytes) -> None:
    gone: list[bool] = []

    async def upload(request: StarletteRequest) -> Response:
        try:
            return PlainTextResponse(await request.body())
        except ClientDisconnect:
            gone.append(True)
            raise

    endpoints = (endpoint("/upload", upload, "POST"),)
    async with serving(ScriptedBackplane(), body_window_s=0.2, endpoints=endpoints) as harness:
        client = await harness.raw_ws()
        await client.send(_CHUNKED + broken)
        assert (await _response(client))[0] in (400, 431)
        await wait_until(lambda: gone == [True])
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
        async with asyncio.timeout(5):
            await gone.wait()


async def test_a_body_may_take_longer_than_its_window_while_it_grows_and_so_may_its_answer() -> None:
    async def upload(request: StarletteRequest) -> Response:
        size = len(await request.body())
        await asyncio.sleep(0.5)
        return PlainTextResponse(str(size))

    endpoints = (endpoint("/upload", upload, "POST"),)
    async with serving(ScriptedBackplane(), body_window_s=0.2, endpoints=endpoints) as harness:
        client = await harness.raw_ws()
        await client.send(b"POST /upload HTTP/1.1\r\nHost: h\r\nContent-Length: 80000\r\n\r\n")
        for _ in range(10):
            await client.send(bytes(8000))
            await asyncio.sleep(0.05)
        assert (await _response(client))[2] == b"80000"
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
        async with asyncio.timeout(5):
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
            status, _, body = await _response(client)
            assert (status, body) == (200, text)
        await client.close()
    assert sum(parts) == 2 * len(text)
    assert len(parts) < len(text) / 20
