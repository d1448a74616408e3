"""An ingress process: start, serve until told to stop, drain, stop."""

from __future__ import annotations

import asyncio
import logging
import signal
from collections.abc import Callable, Coroutine
from typing import Any, Final

from common.addresses import host_and_port
from common.entries import IngressId
from common.errors import RedisUnavailable
from common.redis.clients import RedisServers
from common.settings import IngressSettings, is_made_up
from common.streams.leases import IngressReport
from common.streams.status import process_started_ms
from ingress.backplane import OUTAGE_LIMIT_S, BackplaneSettings, RedisBackplane
from ingress.connection import Connection, ConnectionLimits
from ingress.dialects.native import NativeDialect
from ingress.http.front import Front
from ingress.http.site import HttpLimits, Site
from ingress.request import Request
from ingress.sockets.gate import Gate, allow_many_sockets, max_files
from ingress.sockets.linger import LINGER_S
from ingress.sockets.listening import listening_sockets
from ingress.sockets.peer import Peer
from ingress.sockets.proxies import TrustedProxies
from ingress.sockets.tcp import TcpShell
from ingress.status import SharedStatus, StatusShell

logger = logging.getLogger(__name__)

STREAM_PATHS: Final = ("/", "/ws")
"""Where a WebSocket speaks the protocol of docs/protocol.md."""

_BACKLOG: Final = 1024
_START_PAUSE_S: Final = 0.2
_STOP_TIMEOUT_S: Final = 5.0
# Ingresses that are stopped together have all said so after this time.
_TELL_DRAINING_S: Final = 0.5


class IngressServer:
    """One ingress. Made on the event loop that runs it."""

    def __init__(self, settings: IngressSettings) -> None:
        self._settings = settings
        self._started_ms = process_started_ms()
        self._draining = False
        self._connections: set[Connection] = set()
        self._empty = asyncio.Event()
        self._empty.set()
        self._listeners: list[asyncio.Server] = []
        proxies = TrustedProxies(settings.trusted_proxies)
        self._gate = Gate(max_files, settings.max_connections, settings.max_connections_per_address, proxies)
        self._backplane = RedisBackplane(
            BackplaneSettings(
                ingress=IngressId(settings.ingress_id),
                max_num_streams=settings.max_num_streams,
                sample_rate=settings.sample_rate,
                stream_ttl_s=settings.stream_ttl_s,
                heartbeat_s=settings.heartbeat_ms / 1000,
                claim_timeout_s=settings.claim_timeout_ms / 1000,
                resume_grace_s=settings.resume_grace_s,
                coalesce_ms=settings.coalesce_ms,
                redis_loss_ms=settings.redis_loss_ms,
                adopts=not is_made_up(settings.ingress_id, "i"),
            ),
            RedisServers.parse(settings.redis_url, settings.redis_shards, settings.redis_timeout_ms),
            self._report,
        )
        self._limits = ConnectionLimits(
            sample_rate=settings.sample_rate,
            max_undecoded_s=settings.max_stream_seconds,
            send_buffer_bytes=settings.send_buffer_bytes,
            idle_timeout_s=settings.idle_timeout_s,
            begin_timeout_s=settings.begin_timeout_s,
        )
        self._site = Site(
            self._gate,
            HttpLimits(
                max_frame_bytes=settings.max_frame_bytes,
                head_timeout_s=settings.handshake_timeout_ms / 1000,
            ),
            dict.fromkeys(STREAM_PATHS, self._open),
            proxies=proxies,
        )

    async def run(self, stop: asyncio.Event, stop_now: asyncio.Event) -> None:
        """Serve until `stop`, then drain for --drain-timeout-s or until `stop_now`.

        Raises UnfitRedis, SettingsMismatch or RedisUnavailable when it cannot start, OSError when a port is
        taken.
        """
        try:
            if not await _before(stop, self._agree()):
                logger.info("stopped before the start was complete")
                return
            async with asyncio.TaskGroup() as tasks:
                running = asyncio.Event()
                loops = tasks.create_task(self._backplane.run(running), name="backplane")
                await running.wait()
                try:
                    await self._listen()
                    self._backplane.announce()
                    await stop.wait()
                    await self._drain(stop_now)
                finally:
                    self._close_listeners()
                    loops.cancel()
        finally:
            await self._backplane.close()

    # Start

    async def _agree(self) -> None:
        """Agree with the cluster on what its processes share; Redis may still be starting."""
        loop = asyncio.get_running_loop()
        deadline = loop.time() + OUTAGE_LIMIT_S
        while True:
            try:
                await self._backplane.start()
            except RedisUnavailable:
                if loop.time() > deadline:
                    raise
                await asyncio.sleep(_START_PAUSE_S)
            else:
                return

    async def _listen(self) -> None:
        settings = self._settings
        shared_status = SharedStatus(self._backplane.read_status, self._backplane.start_task)

        def tcp() -> asyncio.Protocol:
            return TcpShell(self._gate, self._open, settings.max_line_bytes)

        def websocket() -> asyncio.Protocol:
            return Front(self._site)

        def status() -> asyncio.Protocol:
            return StatusShell(self._gate, shared_status, self._backplane.start_task)

        for name, port, factory in (
            ("TCP", settings.port, tcp),
            ("WebSocket", settings.ws_port, websocket),
            ("status", settings.status_port, status),
        ):
            if port:
                await self._listen_on(port, factory)
                logger.info("%s on %s", name, host_and_port(settings.host, port))

    async def _listen_on(self, port: int, factory: Callable[[], asyncio.Protocol]) -> None:
        for listener in await listening_sockets(self._settings.host, port):
            self._listeners.append(
                await asyncio.get_running_loop().create_server(factory, sock=listener, backlog=_BACKLOG)
            )

    # Serve

    def _open(self, peer: Peer, request: Request) -> Connection:
        dialect = NativeDialect(self._settings.sample_rate)
        connection = Connection(
            peer, dialect, self._backplane, self._limits, self._backplane.start_task, self._closed
        )
        self._connections.add(connection)
        self._empty.clear()
        if self._draining:  # accepted by the kernel before the listener closed
            connection.drain()
        return connection

    def _closed(self, connection: Connection) -> None:
        self._connections.discard(connection)
        if not self._connections:
            self._empty.set()

    def _report(self) -> IngressReport:
        settings = self._settings
        return IngressReport(
            started_ms=self._started_ms,
            connections=len(self._connections),
            port=settings.port,
            ws_port=settings.ws_port,
            status_port=settings.status_port,
            draining=self._draining,
        )

    # Drain and stop

    async def _drain(self, stop_now: asyncio.Event) -> None:
        """Stop accepting; let streams end; send those away that can go on elsewhere."""
        self._draining = True
        self._close_listeners()
        self._site.drain()
        logger.info("draining %d connections", len(self._connections))
        for connection in list(self._connections):
            if connection.stream_is_young:
                connection.drain()
        sending_away = asyncio.create_task(self._send_away(), name="send-away")
        await self._wait_until_empty(stop_now, self._settings.drain_timeout_s)
        sending_away.cancel()
        await asyncio.gather(sending_away, return_exceptions=True)
        for connection in list(self._connections):
            connection.drain()
        await self._backplane.stop(_STOP_TIMEOUT_S)
        # Sockets that have been hung up on flush, and their clients close.
        await self._wait_until_empty(stop_now, LINGER_S)
        self._site.abort()
        logger.info("stopped")

    async def _send_away(self) -> None:
        """Send away those that can go on elsewhere, once another ingress is known to serve.

        Ingresses that are stopped together say so to each other first, and find that none is left: then these
        streams end here, as others do.
        """
        while True:
            try:
                await self._backplane.others_serve()  # says that this one drains
                await asyncio.sleep(_TELL_DRAINING_S)
                others_serve = await self._backplane.others_serve()
            except RedisUnavailable as error:
                logger.warning("nobody knows whether another ingress serves: %s", error)
                await asyncio.sleep(_TELL_DRAINING_S)
                continue
            if others_serve:
                for connection in list(self._connections):
                    if connection.can_resume:
                        connection.drain()

    async def _wait_until_empty(self, stop_now: asyncio.Event, timeout_s: float) -> None:
        waits = [
            asyncio.create_task(self._empty.wait(), name="empty"),
            asyncio.create_task(stop_now.wait(), name="stop-now"),
        ]
        await asyncio.wait(waits, timeout=timeout_s, return_when=asyncio.FIRST_COMPLETED)
        for wait in waits:
            wait.cancel()
        await asyncio.gather(*waits, return_exceptions=True)

    def _close_listeners(self) -> None:
        for listener in self._listeners:
            listener.close()
        self._listeners.clear()


async def _before(stop: asyncio.Event, work: Coroutine[Any, Any, None]) -> bool:
    """Do some work unless `stop` is set first; True where it was done. Raises what the work raises."""
    working = asyncio.create_task(work, name="start")
    stopped = asyncio.create_task(stop.wait(), name="stop")
    try:
        await asyncio.wait((working, stopped), return_when=asyncio.FIRST_COMPLETED)
        if working.done():
            working.result()
        return working.done()
    finally:
        for task in (working, stopped):
            task.cancel()
        await asyncio.gather(working, stopped, return_exceptions=True)


async def serve(settings: IngressSettings) -> None:
    """Run an ingress until SIGTERM or SIGINT; the second signal cuts the drain short."""
    allow_many_sockets()
    stop, stop_now = asyncio.Event(), asyncio.Event()

    def on_signal() -> None:
        (stop_now if stop.is_set() else stop).set()

    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, on_signal)
    await IngressServer(settings).run(stop, stop_now)
