"""The cost of reading the head of a browser's WebSocket request, for each available parser.

    python -m benchmarks.request_heads

Microseconds of one core for a new connection's parser and the parsing, and for nothing else; the best of five
rounds.
"""

from __future__ import annotations

import asyncio
import sys
import timeit
from collections.abc import Callable
from typing import Any, Final

import h11
import httptools
from uvicorn.config import Config
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol
from uvicorn.server import ServerState
from websockets.server import ServerProtocol

from benchmarks.command_line import command_line

HEAD: Final = (
    b"GET /ws?model=x HTTP/1.1\r\nHost: speech.example.org:8000\r\nConnection: keep-alive, Upgrade\r\n"
    b"Pragma: no-cache\r\nCache-Control: no-cache\r\nUser-Agent: Mozilla/5.0 (X11; Linux x86_64) "
    b"AppleWebKit/537.36 (KHTML, like Gecko) Chrome/126.0.0.0 Safari/537.36\r\nUpgrade: websocket\r\n"
    b"Origin: https://example.org\r\nSec-WebSocket-Version: 13\r\nAccept-Encoding: gzip, deflate, br\r\n"
    b"Accept-Language: en\r\nSec-WebSocket-Key: AAAAAAAAAAAAAAAAAAAAAA==\r\n"
    b"Sec-WebSocket-Extensions: permessage-deflate; client_max_window_bits\r\n\r\n"
)
ROUNDS: Final = 5
TIMES: Final = 5000


class _Headers:
    """Keeps what httptools reads."""

    def __init__(self) -> None:
        self.headers: list[tuple[bytes, bytes]] = []

    def on_header(self, name: bytes, value: bytes) -> None:
        self.headers.append((name.lower(), value))


class _Upgrading(HttpToolsProtocol):
    """uvicorn's class up to the end of the head."""

    def _should_upgrade(self) -> bool:
        return True

    def handle_websocket_upgrade(self) -> None:
        self.connections.discard(self)


class _Transport(asyncio.Transport):
    """A transport that discards its data."""


def by_httptools() -> None:
    """Llhttp alone."""
    try:
        httptools.HttpRequestParser(_Headers()).feed_data(HEAD)
    except httptools.HttpParserUpgrade:
        return
    raise AssertionError("no upgrade")


def by_h11() -> None:
    """h11, in Python."""
    connection = h11.Connection(h11.SERVER)
    connection.receive_data(HEAD)
    if not isinstance(connection.next_event(), h11.Request):
        raise AssertionError("no request")


def by_websockets() -> None:
    """Websockets' own parser, in Python."""
    protocol = ServerProtocol()
    protocol.receive_data(HEAD)
    if len(protocol.events_received()) != 1:
        raise AssertionError("no request")


async def by_uvicorn() -> Callable[[], None]:
    """Uvicorn's class over llhttp, a new one each time."""

    async def app(scope: Any, receive: Any, send: Any) -> None:
        raise AssertionError("no request for an application")

    config = Config(app, http="httptools", ws="none", lifespan="off", log_config=None, access_log=False)
    config.load()
    state, loop, transport = ServerState(), asyncio.get_running_loop(), _Transport()

    def read() -> None:
        protocol = _Upgrading(config, state, {}, loop)
        protocol.connection_made(transport)
        protocol.data_received(HEAD)
        if protocol in state.connections:
            raise AssertionError("no upgrade")

    return read


async def main() -> int:
    """Print a line for each."""
    command_line(__file__, __doc__).parse_args()
    for name, read in (
        ("httptools", by_httptools),
        ("uvicorn over httptools", await by_uvicorn()),
        ("h11", by_h11),
        ("websockets", by_websockets),
    ):
        best = min(timeit.repeat(read, number=TIMES, repeat=ROUNDS)) / TIMES
        print(f"{name:24} {1e6 * best:6.1f} us")
    return 0


if __name__ == "__main__":
    sys.exit(asyncio.run(main()))
