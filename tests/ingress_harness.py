"""An ingress's TCP and WebSocket ports over the backplane in memory, in this process."""

from __future__ import annotations

import asyncio
import json
import socket
import ssl
from collections.abc import AsyncIterator, Callable, Iterable, Mapping
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, field
from functools import partial
from ipaddress import ip_network
from typing import Any, cast

from starlette.routing import Route

from common.errors import RedisUnavailable
from common.monitoring.metrics import IngressMetrics
from ingress.api.page import PAGE
from ingress.auth.client import ANYBODY
from ingress.auth.guard import NO_GUARD, Guard
from ingress.auth.proxies import TrustedProxies
from ingress.clients.connection import Connection
from ingress.clients.limits import ConnectionLimits
from ingress.clients.pace import UNPACED, Paces
from ingress.dialects.dialect import Dialect, DialectOf
from ingress.dialects.native import NativeDialect
from ingress.http.authentication import Authenticate, everyone
from ingress.http.front import Front
from ingress.http.refusal import RefusalShape
from ingress.http.site import HttpLimits, Site
from ingress.media.decoder import Decoders
from ingress.meter import Meter
from ingress.request import Request
from ingress.server import STREAM_PATHS
from ingress.sockets.acceptor import Acceptor, listening_sockets
from ingress.sockets.gate import Gate
from ingress.sockets.peer import Peer
from ingress.sockets.shell import OpenConnection, SocketShell
from ingress.sockets.tcp import TcpShell
from ingress.status import StatusShell
from tests.fake_backplane import ScriptedBackplane

HOST = "127.0.0.1"
HANDSHAKE = (
    b"GET / HTTP/1.1\r\nHost: h\r\nConnection: keep-alive\r\nConnection: Upgrade\r\n"
    b"Upgrade: websocket\r\nSec-WebSocket-Version: 13\r\n"
    b"Sec-WebSocket-Key: AAAAAAAAAAAAAAAAAAAAAA==\r\n\r\n"
)


@dataclass
class Harness:
    """The ports, and what is open on them.

    sockets: those that a test opened by itself, closed at the end.
    """

    backplane: ScriptedBackplane
    site: Site | None = None
    tcp_port: int = 0
    ws_port: int = 0
    status_port: int = 0
    connections: set[Connection] = field(default_factory=set)
    requests: list[Request] = field(default_factory=list)
    shells: list[SocketShell] = field(default_factory=list)
    transports: list[asyncio.Transport] = field(default_factory=list)
    sockets: list[socket.socket] = field(default_factory=list)
    metrics: IngressMetrics = field(default_factory=IngressMetrics)

    @property
    def tcp_url(self) -> str:
        return f"tcp://{HOST}:{self.tcp_port}"

    @property
    def ws_url(self) -> str:
        return f"ws://{HOST}:{self.ws_port}"

    async def tcp(self) -> TcpClient:
        """A raw TCP client."""
        reader, writer = await asyncio.open_connection(HOST, self.tcp_port)
        return TcpClient(reader, writer)

    async def raw_ws(self) -> TcpClient:
        """A raw socket to the WebSocket port."""
        reader, writer = await asyncio.open_connection(HOST, self.ws_port)
        return TcpClient(reader, writer)


@dataclass
class TcpClient:
    """A socket whose bytes the test writes itself."""

    reader: asyncio.StreamReader
    writer: asyncio.StreamWriter

    async def send(self, message: dict[str, Any] | bytes) -> None:
        self.writer.write(message if isinstance(message, bytes) else json.dumps(message).encode() + b"\n")
        await self.writer.drain()

    async def receive(self, timeout_s: float = 60.0) -> dict[str, Any]:
        async with asyncio.timeout(timeout_s):
            line = await self.reader.readline()
        if not line:
            raise EOFError("the server closed the connection")
        message: dict[str, Any] = json.loads(line)
        return message

    async def receive_all(self, timeout_s: float = 60.0) -> list[dict[str, Any]]:
        """Everything up to the end of the connection."""
        async with asyncio.timeout(timeout_s):
            data = await self.reader.read()
        return [json.loads(line) for line in data.splitlines()]

    async def response(
        self, *, body: bool = True, timeout_s: float = 60.0
    ) -> tuple[int, dict[str, str], bytes]:
        """Status, headers and body of the next HTTP response; without `body`, of a response to HEAD."""
        async with asyncio.timeout(timeout_s):
            head = (await self.reader.readuntil(b"\r\n\r\n")).decode("latin-1").splitlines()
            headers = dict(line.lower().split(": ", 1) for line in head[1:] if line)
            length = int(headers.get("content-length", 0)) if body else 0
            return int(head[0].split()[1]), headers, await self.reader.readexactly(length)

    async def close(self) -> None:
        self.writer.close()
        with suppress(OSError):
            await self.writer.wait_closed()


async def wait_until(condition: Callable[[], bool], timeout_s: float = 60.0) -> None:
    """Wait until something is so; the loop runs in between."""
    async with asyncio.timeout(timeout_s):
        while not condition():  # noqa: ASYNC110 - what is waited for sets no event
            await asyncio.sleep(0.005)


@asynccontextmanager
async def serving(
    backplane: ScriptedBackplane,
    *,
    max_line_bytes: int = 64 * 1024,
    max_frame_bytes: int = 64 * 1024,
    handshake_timeout_s: float = 60.0,
    max_buffered_samples: int = 1_000_000,
    send_buffer_bytes: int = 64 * 1024,
    unread_timeout_s: float = 5.0,
    idle_timeout_s: float = 0.0,
    audio_timeout_s: float = 0.0,
    begin_timeout_s: float = 60.0,
    refused_grace_s: float = 0.2,
    max_files: int = 100_000,
    max_connections: int | None = None,
    max_connections_per_address: int = 0,
    trusted_proxies: Iterable[str] = (),
    keep_alive_s: float = 60.0,
    body_window_s: float = 60.0,
    min_body_rate: int = 8192,
    ping_interval_s: float = 0.0,
    endpoints: Iterable[Route] = (),
    authenticate: Authenticate = everyone,
    tls: ssl.SSLContext | None = None,
    status: Callable[[], bytes] | None = None,
    dialect: Callable[[], Dialect] = lambda: NativeDialect(16000),
    guard: Guard = NO_GUARD,
    paces: Paces = UNPACED,
    counted_first: bool = False,
    strangers: bool = False,
    shapes: Mapping[str, RefusalShape] | None = None,
    dialects: Mapping[str, DialectOf] | None = None,
    decoders: Decoders | None = None,
) -> AsyncIterator[Harness]:
    """Open the ports; close everything at the end.

    dialects: what is spoken at further paths of the WebSocket port.
    """
    harness = Harness(backplane)
    limits = ConnectionLimits(
        sample_rate=16000,
        max_undecoded_s=max_buffered_samples / 16000,
        send_buffer_bytes=send_buffer_bytes,
        unread_timeout_s=unread_timeout_s,
        idle_timeout_s=idle_timeout_s,
        audio_timeout_s=audio_timeout_s,
        begin_timeout_s=begin_timeout_s,
        refused_grace_s=refused_grace_s,
    )
    proxies = TrustedProxies(map(ip_network, trusted_proxies))
    gate = Gate(lambda: max_files, max_connections, max_connections_per_address, proxies)
    async with asyncio.TaskGroup() as tasks:

        def start(coroutine: Any, name: str) -> object:
            return tasks.create_task(coroutine, name=name)

        def route(request: Request) -> OpenConnection:
            harness.requests.append(request)
            dialect_of = (dialects or {}).get(request.path)
            return partial(open_connection, request, dialect() if dialect_of is None else dialect_of(request))

        def open_connection(request: Request, spoken: Dialect, peer: Peer) -> Connection:
            harness.shells.append(cast(SocketShell, peer))
            connection = Connection(
                peer,
                spoken,
                backplane,
                limits,
                start,
                harness.connections.discard,
                Meter(harness.metrics, "websocket" if request.method else "tcp"),
                None if strangers else ANYBODY,
                guard,
                decoders,
                counted_first=counted_first and bool(request.method) and not request.comes_back,
                paces=paces,
                address=request.address,
            )
            harness.connections.add(connection)
            return connection

        def tracked(protocol: asyncio.Protocol) -> asyncio.Protocol:
            made = protocol.connection_made

            def connection_made(transport: asyncio.BaseTransport) -> None:
                harness.transports.append(cast(asyncio.Transport, transport))
                made(transport)

            protocol.connection_made = connection_made  # type: ignore[method-assign]
            return protocol

        class _Tcp(TcpShell):
            """With a `__dict__`, so that it can be tracked."""

        class _Status(StatusShell):
            """With a `__dict__`, so that it can be tracked."""

        async def read_status() -> bytes:
            if status is None:
                raise RedisUnavailable
            return status()

        site = harness.site = Site(
            gate,
            HttpLimits(
                max_frame_bytes,
                handshake_timeout_s,
                keep_alive_s,
                body_window_s,
                min_body_rate,
                ping_interval_s,
            ),
            dict.fromkeys((*STREAM_PATHS, *(dialects or {})), route),
            endpoints=(*PAGE, *endpoints),
            authenticate=authenticate,
            proxies=proxies,
            shapes=shapes,
            metrics=harness.metrics,
        )
        servers = [
            Acceptor(listener, factory, gate.turns, start, tls=tls)
            for factory in (
                lambda: tracked(_Tcp(gate, route, max_line_bytes)),
                lambda: tracked(Front(site)),
                lambda: tracked(_Status(gate, read_status, start)),
            )
            for listener in await listening_sockets(HOST, 0)
        ]
        ports = [server.port for server in servers]
        harness.tcp_port, harness.ws_port, harness.status_port = ports
        try:
            yield harness
        finally:
            for server in servers:
                server.close()
            for transport in harness.transports:
                transport.abort()
            for opened in harness.sockets:
                opened.close()
            backplane.gate.set()
            await asyncio.sleep(0)
            await wait_until(lambda: not harness.connections)
            await wait_until(lambda: gate.num_open == 0)
