"""What the WebSocket port answers to a request does not depend on how its bytes were cut."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence

import hypothesis.strategies as st
from hypothesis import example, given, settings
from starlette.requests import Request
from starlette.responses import PlainTextResponse, Response

from ingress.api.page import PAGE
from ingress.http.endpoints import endpoint
from ingress.http.front import MAX_HEADER_BYTES, Front
from ingress.http.site import HttpLimits, Site
from ingress.sockets.gate import Gate, max_files
from ingress.sockets.shell import OpenConnection
from tests.property.shell_input import RecordingTransport, cut


async def _echo(request: Request) -> Response:
    return PlainTextResponse(await request.body())


def _no_stream(request: object) -> OpenConnection:
    raise AssertionError("no request here opens a WebSocket")


_LIMITS = HttpLimits(max_frame_bytes=1000, head_timeout_s=60.0)


async def _answer(parts: Sequence[bytes]) -> tuple[bytes, bool]:
    """Feed the parts of one request; return the first response without its date, and whether the end came."""
    gate = Gate(max_files)
    site = Site(gate, _LIMITS, {"/ws": _no_stream}, endpoints=(*PAGE, endpoint("/echo", _echo, "POST")))
    front, transport = Front(site), RecordingTransport()
    front.connection_made(transport)
    for part in parts:
        if not transport.ended:
            front.data_received(part)
    async with asyncio.timeout(60):
        while gate.turns.num_waiting:  # noqa: ASYNC110 - no event
            await asyncio.sleep(0)
        while site.state.tasks and not transport.ended and not _waits_for_more(front):  # noqa: ASYNC110 - no event
            await asyncio.sleep(0)
    ended, written = transport.ended, transport.written
    front.connection_lost(None)
    if site.state.tasks:
        await asyncio.wait(list(site.state.tasks), timeout=10)
    head, _, body = written.partition(b"\r\n\r\n")
    lines = [line for line in head.splitlines() if not line.lower().startswith(b"date:")]
    return b"\n".join(lines) + b"\n\n" + body, ended


def _waits_for_more(front: Front) -> bool:
    return front.cycle is not None and front.cycle.more_body


_HEADERS = st.lists(
    st.sampled_from(
        (
            b"Host: h",
            *(b"Connection: close",) * 4,
            b"Connection: Upgrade",
            b"Upgrade: websocket",
            b"Upgrade: h2c",
            b"Sec-WebSocket-Version: 13",
            b"Content-Length: 4",
            b"Content-Length: 4444",
            b"Content-Length: x",
            b"Transfer-Encoding: chunked",
            b"Transfer-Encoding: gzip, chunked",
            b"Content-Encoding: gzip",
            b"Expect: 100-continue",
            b"X: " + b"y" * 70_000,
            b" folded",
            b"no colon",
            b"\xff: \xfe",
        )
    ),
    max_size=5,
)


_TARGETS = (b"/", b"/echo", b"/ws", b"/nothing", b"*", b"//", b"http://[", b"/" + b"x" * 66_000)
_BODIES = (b"", b"body", b"4\r\nbody\r\n0\r\n\r\n")


@st.composite
def _requests(draw: st.DrawFn) -> bytes:
    """One request, as it should be or nearly so; or anything."""
    if draw(st.integers(0, 9)) == 0:
        return draw(st.binary(min_size=1, max_size=200)) + b"\r\n\r\n"
    method = draw(
        st.sampled_from((b"GET", b"GET", b"POST", b"POST", b"POST", b"HEAD", b"OPTIONS", b"PUT", b"get", b""))
    )
    target = draw(st.sampled_from(_TARGETS))
    version = draw(st.sampled_from((*(b"HTTP/1.1",) * 9, b"HTTP/1.0", b"HTTP/2.0", b"HTTP", b"")))
    hosts = draw(st.sampled_from((*((b"Host: h",),) * 9, ())))
    head = b"\r\n".join((b" ".join((method, target, version)), *hosts, *draw(_HEADERS), b"", b""))
    return head + draw(st.sampled_from(_BODIES)) if method == b"POST" else head


@example(data=b"GET / HTTP/1.1\r\nX: " + b"y" * 70_000 + b"\r\n folded\r\n\r\n", sizes=[6])
@given(data=_requests(), sizes=st.lists(st.integers(1, 300), max_size=40))
@settings(max_examples=150)
def test_http_whole_cut_and_byte_by_byte(data: bytes, sizes: list[int]) -> None:
    short = len(data) < 2000
    ways = ([data], cut(data, sizes), [data[at : at + 1] for at in range(len(data))] if short else [data])
    outcomes = {asyncio.run(_answer(way)) for way in ways}
    if len(outcomes) > 1:
        # A head that is too long, and wrong behind that: how it is cut decides which is seen first.
        assert len(data) > MAX_HEADER_BYTES
        assert all(
            was_closed and answer.split()[1] in (b"400", b"414", b"431") for answer, was_closed in outcomes
        )
