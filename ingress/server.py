"""An ingress process: start, serve until told to stop, drain, stop."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import signal
import ssl
import time
from collections.abc import Callable, Coroutine
from functools import partial
from pathlib import Path
from typing import Any, Final

from common.addresses import host_and_port
from common.auth.api_key import KeyId
from common.entries import IngressId
from common.errors import RedisUnavailable
from common.monitoring.families import STREAM_TRANSPORTS
from common.monitoring.metrics import IngressMetrics
from common.presence.leases import IngressReport
from common.presence.status import unix_time_ms
from common.process.certificates import RELOAD_EVERY_S, ServerTls, ServerTlsFiles
from common.redis.clients import RedisServers
from common.settings import IngressSettings, is_made_up
from common.tracing.tracer import checked_traceparent, make_tracer
from ingress.api.capabilities import CAPABILITIES_ENDPOINT
from ingress.api.listen import listen_endpoints
from ingress.api.openai_errors import openai_refusal
from ingress.api.page import PAGE, is_open
from ingress.api.tokens import tokens_endpoints
from ingress.api.transcriptions import transcription_endpoints
from ingress.auth.client import ANYBODY
from ingress.auth.door import Door
from ingress.auth.guard import NO_GUARD, Guard
from ingress.auth.hosts import Hosts
from ingress.auth.key_guard import KeyGuard
from ingress.auth.key_ring import KeyRing
from ingress.auth.origins import Origins
from ingress.auth.proxies import TrustedProxies
from ingress.clients.connection import Connection
from ingress.clients.limits import ConnectionLimits
from ingress.clients.pace import Paces
from ingress.dialects.deepgram import refusals
from ingress.dialects.deepgram.dialect import DeepgramDialect
from ingress.dialects.deepgram.query import parse_listen_query
from ingress.dialects.dialect import Dialect, DialectOf
from ingress.dialects.native import NativeDialect
from ingress.dialects.openai.realtime import RealtimeDialect
from ingress.files.recordings import RecordingLimits, Recordings
from ingress.http.front import Front
from ingress.http.site import HttpLimits, Site
from ingress.media.decoder import Decoders
from ingress.meter import Meter
from ingress.monitor import IngressMonitor
from ingress.protocol import YOUNG
from ingress.request import Request
from ingress.sockets.acceptor import Acceptor, listening_sockets
from ingress.sockets.gate import Gate, allow_many_sockets, max_files
from ingress.sockets.linger import LINGER_S
from ingress.sockets.peer import Peer
from ingress.sockets.shell import StreamRoute
from ingress.sockets.tcp import TcpShell
from ingress.sockets.turns import Turns
from ingress.status import SharedStatus, StatusShell
from ingress.streams.redis_backplane import BackplaneSettings, RedisBackplane

logger = logging.getLogger(__name__)

STREAM_PATHS: Final = ("/", "/ws")
"""Paths of WebSockets in the native protocol (docs/protocol.md)."""
LISTEN_PATH: Final = "/v1/listen"
"""Path of WebSockets in Deepgram's protocol (docs/deepgram.md)."""
REALTIME_PATH: Final = "/v1/realtime"
"""Path of WebSockets in OpenAI's realtime transcription protocol (docs/openai.md)."""

_OPENAI_PATHS: Final = (
    REALTIME_PATH,
    "/v1/realtime/client_secrets",
    "/v1/realtime/transcription_sessions",
    "/v1/audio/transcriptions",
    "/v1/models",
)
_START_PAUSE_S: Final = 0.2
# Uploads for each decoder where --max-uploads is auto: one is received while another is decoded.
_UPLOADS_PER_DECODER: Final = 2
_STOP_TIMEOUT_S: Final = 5.0
# Ingresses that are stopped together have all announced it after this time.
_TELL_DRAINING_S: Final = 0.5
# Longest time over which a draining ingress spreads the closes of its connections.
_SEND_AWAY_S: Final = 5.0


class IngressServer:
    """One ingress. Made on the event loop that runs it."""

    def __init__(self, settings: IngressSettings) -> None:
        self._settings = settings
        self._started_ms = unix_time_ms()
        self._draining = False
        self._accepting = False
        self._connections: set[Connection] = set()
        self.metrics = IngressMetrics()
        self._empty = asyncio.Event()
        self._empty.set()
        self._acceptors: list[Acceptor] = []
        self._ring = _ring_of(settings, self._revoked)
        proxies = TrustedProxies(settings.trusted_proxies)
        per_address = settings.max_connections_per_address
        turns = Turns(settings.turns_share)
        self._gate = Gate(max_files, settings.max_connections, per_address, proxies, turns)
        self._tracer = make_tracer(settings, "ingress", settings.ingress_id)
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
                redis_outage_s=settings.redis_outage_s,
                adopts=not is_made_up(settings.ingress_id, "i"),
            ),
            RedisServers.of(settings),
            self._report,
            self.metrics,
            self._tracer,
        )
        self._limits = ConnectionLimits(
            sample_rate=settings.sample_rate,
            max_undecoded_s=settings.max_stream_seconds,
            send_buffer_bytes=settings.send_buffer_bytes,
            idle_timeout_s=settings.idle_timeout_s,
            audio_timeout_s=settings.audio_timeout_s,
            begin_timeout_s=settings.begin_timeout_s,
            max_finalizes=settings.max_finalizes,
        )
        self._paces = Paces(settings.max_live_rate, settings.max_live_lead_s)
        self._door = Door(
            self._ring, Origins(settings.allowed_origins, Hosts.of(settings)), self.metrics, is_open
        )
        self._guard = None if self._ring is None else KeyGuard(self._door, self._backplane.key_usage())
        self._tls = _tls_of(settings)
        self._decoders = Decoders(settings.max_decoders, settings.max_decoder_mb << 20)
        self._native = self._speaking(lambda request: NativeDialect(settings.sample_rate))
        self._recordings = Recordings(
            self._backplane,
            self._decoders,
            self._guard_of,
            self.metrics,
            RecordingLimits(
                max_held=settings.max_uploads or _UPLOADS_PER_DECODER * settings.max_decoders,
                max_bytes=settings.max_upload_mb << 20,
                max_recording_s=settings.max_recording_s,
            ),
        )
        self._site = Site(
            self._gate,
            HttpLimits(
                max_frame_bytes=settings.max_frame_bytes,
                head_timeout_s=settings.handshake_timeout_ms / 1000,
                keep_alive_s=settings.keep_alive_s,
                body_window_s=settings.body_timeout_s,
                min_body_rate=settings.min_body_rate,
                ping_interval_s=settings.ping_interval_s,
            ),
            {
                **dict.fromkeys(STREAM_PATHS, self._native),
                LISTEN_PATH: self._speaking(
                    lambda request: DeepgramDialect(
                        parse_listen_query(request.query, self._backplane.languages)
                    )
                ),
                REALTIME_PATH: self._speaking(
                    lambda request: RealtimeDialect.of(request, self._backplane.languages)
                ),
            },
            endpoints=(
                *PAGE,
                *CAPABILITIES_ENDPOINT,
                *tokens_endpoints(self._ring),
                *transcription_endpoints(self._recordings),
                *listen_endpoints(self._recordings),
            ),
            authenticate=self._door.admit_request,
            proxies=proxies,
            shapes={LISTEN_PATH: refusals.shaped, **dict.fromkeys(_OPENAI_PATHS, openai_refusal)},
            metrics=self.metrics,
        )

    async def run(self, stop: asyncio.Event, stop_now: asyncio.Event) -> None:
        """Serve until `stop`, then drain for --drain-timeout-s or until `stop_now`.

        Raises UnfitRedis, SettingsMismatch or RedisUnavailable when it cannot start, OSError when a port is
        taken.
        """
        settings = self._settings
        monitor = IngressMonitor(
            settings.metrics_host, settings.metrics_port, self.metrics, self._refresh, self._why_not_ready
        )
        try:
            if not await _before(stop, self._agree()):
                logger.info("stopped before the start was complete")
                return
            async with asyncio.TaskGroup() as tasks:
                running = asyncio.Event()
                loops = [
                    tasks.create_task(self._backplane.run(running), name="backplane"),
                    tasks.create_task(monitor.run(), name="monitor"),
                ]
                if self._ring is not None and self._guard is not None:
                    loops.append(tasks.create_task(self._ring.run(time.time), name="keys"))
                    loops.append(tasks.create_task(self._guard.run(), name="key-usage"))
                if self._tls is not None:
                    loops.append(tasks.create_task(_follow(self._tls), name="certificate"))
                await running.wait()
                try:
                    await self._listen()
                    self._accepting = True
                    monitor.started()
                    self._backplane.announce()
                    await stop.wait()
                    await self._drain(stop_now)
                finally:
                    for acceptor in self._acceptors:
                        acceptor.close()
                    for loop in loops:
                        loop.cancel()
        finally:
            await self._backplane.close()
            monitor.close()
            await asyncio.to_thread(self._tracer.close)

    # Start

    async def _agree(self) -> None:
        """Agree with the cluster on the shared settings; Redis may still be starting."""
        loop = asyncio.get_running_loop()
        deadline = loop.time() + self._settings.redis_outage_s
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
            return TcpShell(self._gate, self._native, settings.max_line_bytes)

        def websocket() -> asyncio.Protocol:
            return Front(self._site)

        def status() -> asyncio.Protocol:
            return StatusShell(self._gate, shared_status, self._backplane.start_task)

        tls = None if self._tls is None else self._tls.context
        for name, host, port, factory, context in (
            ("TCP", settings.host, settings.port, tcp, tls),
            ("WebSocket", settings.host, settings.ws_port, websocket, tls),
            ("status", settings.status_host, settings.status_port, status, None),
        ):
            if port:
                await self._listen_on(host, port, factory, context)
                logger.info("%s%s on %s", name, " with TLS" if context else "", host_and_port(host, port))

    async def _listen_on(
        self, host: str, port: int, factory: Callable[[], asyncio.Protocol], tls: ssl.SSLContext | None
    ) -> None:
        timeout_s = self._settings.handshake_timeout_ms / 1000
        gate, start_task = self._gate, self._backplane.start_task
        for listener in await listening_sockets(host, port):
            self._acceptors.append(
                Acceptor(
                    listener, factory, gate.turns, start_task, gate.has_file, tls=tls, tls_timeout_s=timeout_s
                )
            )

    # Serve

    def _speaking(self, dialect_of: DialectOf) -> StreamRoute:
        """Return the route of streams in a dialect. Making the dialect may refuse the request."""
        return lambda request: partial(self._open, dialect_of(request), request)

    def _open(self, dialect: Dialect, request: Request, peer: Peer) -> Connection:
        client, guard = request.client, self._guard_of(request.address)
        if client is None and self._guard is None:
            client = ANYBODY  # on the TCP port
        connection = Connection(
            peer,
            dialect,
            self._backplane,
            self._limits,
            self._backplane.start_task,
            self._closed,
            Meter(self.metrics, "websocket" if request.method else "tcp"),
            client,
            guard,
            self._decoders,
            counted_first=client is not None and client.is_limited and not request.comes_back,
            traceparent=checked_traceparent(request.header("traceparent")),
            paces=self._paces,
            address=request.address,
        )
        self._connections.add(connection)
        self._empty.clear()
        if not self._accepting:  # accepted by the kernel before the listener closed
            connection.drain()
        return connection

    def _guard_of(self, address: str) -> Guard:
        return NO_GUARD if self._guard is None else self._guard.for_address(address)

    def _revoked(self, key_id: KeyId) -> None:
        self._recordings.expel(key_id)
        for connection in list(self._connections):
            if connection.client is not None and connection.client.key_id == key_id:
                connection.expel()
        self._backplane.expel(key_id)

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

    def _refresh(self, metrics: IngressMetrics) -> None:
        metrics.draining = int(self._draining)
        connections = list(self._connections)  # a copy: this runs in another thread
        for transport in STREAM_TRANSPORTS:
            metrics.connections[transport] = sum(one.transport == transport for one in connections)
        metrics.connections["http"] = self._site.num_connections
        metrics.connections_refused.update(self._gate.num_refused)
        metrics.uploads = self._recordings.num_held
        metrics.decoders = self._decoders.running
        metrics.ping_timeouts = self._site.pinger.num_lost
        metrics.pace_waits = self._paces.num_waits
        metrics.slow_bodies = self._site.num_slow_bodies
        metrics.paused_connections = sum(one.reading.is_paused for one in connections)
        metrics.certificate_expiry_timestamp_seconds = 0 if self._tls is None else self._tls.expires_s
        metrics.send_buffer_bytes = sum(one.waiting_bytes for one in connections)
        self._backplane.refresh(metrics)

    def _why_not_ready(self) -> list[str]:
        reasons = ["draining"] if self._draining else []
        if not self._backplane.answered_lately:
            reasons.append("redis")
        return reasons

    # Drain and stop

    async def _drain(self, stop_now: asyncio.Event) -> None:
        """Report 'not ready', stop accepting, let streams end; send away those that can resume elsewhere."""
        self._draining = True
        delay_s = self._settings.drain_delay_s
        if delay_s:
            # Load balancers send connections here until they notice.
            logger.info("not ready from now on; the listeners close in %g s", delay_s)
            await _wait(stop_now, delay_s)
        self._accepting = False
        for acceptor in self._acceptors:
            acceptor.stop()
        self._site.drain()
        logger.info("draining %d connections", len(self._connections))
        for connection in list(self._connections):
            if connection.state in YOUNG:
                connection.drain()
        sending_away = asyncio.create_task(self._send_away(), name="send-away")
        await self._wait_until_empty(stop_now, self._settings.drain_timeout_s)
        sending_away.cancel()
        await asyncio.gather(sending_away, return_exceptions=True)
        for connection in list(self._connections):
            connection.drain()
        await self._backplane.stop(_STOP_TIMEOUT_S)
        # Time for closing sockets to flush, and for their clients to close.
        await self._wait_until_empty(stop_now, LINGER_S)
        self._site.abort()
        logger.info("stopped")

    async def _send_away(self) -> None:
        """Send away clients that can resume elsewhere, once another ingress is known to serve.

        Ingresses that are stopped together announce it to each other first, and find that no other serves:
        then these streams end here like the others.
        """
        while True:
            try:
                await self._backplane.others_serve()  # announces that this ingress drains
                await asyncio.sleep(_TELL_DRAINING_S)
                others_serve = await self._backplane.others_serve()
            except RedisUnavailable as error:
                logger.warning("nobody knows whether another ingress serves: %s", error)
                await asyncio.sleep(_TELL_DRAINING_S)
                continue
            if others_serve:
                await self._send_away_one_by_one()

    async def _send_away_one_by_one(self) -> None:
        """Close the connections one by one, so that the other ingresses do not get all clients at once."""
        leaving = [connection for connection in self._connections if connection.can_resume]
        pause_s = min(_SEND_AWAY_S, self._settings.drain_timeout_s / 4) / max(1, len(leaving))
        for connection in leaving:
            connection.drain()
            await asyncio.sleep(pause_s)

    async def _wait_until_empty(self, stop_now: asyncio.Event, timeout_s: float) -> None:
        waits = [
            asyncio.create_task(self._served(), name="served"),
            asyncio.create_task(stop_now.wait(), name="stop-now"),
        ]
        await asyncio.wait(waits, timeout=timeout_s, return_when=asyncio.FIRST_COMPLETED)
        for wait in waits:
            wait.cancel()
        await asyncio.gather(*waits, return_exceptions=True)

    async def _served(self) -> None:
        """Wait until no stream has a connection, and no recording is being uploaded or decoded."""
        await self._empty.wait()
        await self._site.answered()


async def _wait(event: asyncio.Event, timeout_s: float) -> None:
    """Wait for an event, for `timeout_s` at most."""
    with contextlib.suppress(TimeoutError):
        async with asyncio.timeout(timeout_s):
            await event.wait()


def _ring_of(settings: IngressSettings, on_revoked: Callable[[KeyId], None]) -> KeyRing | None:
    """Read the keys. Raises KeysFileError."""
    if settings.auth_keys_file:
        return KeyRing(Path(settings.auth_keys_file), on_revoked)
    logger.warning("no --auth-keys-file: everybody who reaches these ports is served")
    return None


def _tls_of(settings: IngressSettings) -> ServerTls | None:
    """Read the certificate. Raises SettingsError."""
    return ServerTls(ServerTlsFiles.of(settings)) if settings.tls_cert else None


async def _follow(tls: ServerTls) -> None:
    """Load the certificate again when it changes, until cancelled."""
    while True:
        await asyncio.sleep(RELOAD_EVERY_S)
        await asyncio.to_thread(tls.reload)


async def _before(stop: asyncio.Event, work: Coroutine[Any, Any, None]) -> bool:
    """Do some work unless `stop` is set first; return whether it was done. Raises the work's exceptions."""
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

    for number in (signal.SIGTERM, signal.SIGINT):
        asyncio.get_running_loop().add_signal_handler(number, on_signal)
    await IngressServer(settings).run(stop, stop_now)
