"""The site behind the WebSocket port: the routes of streams, the endpoints, and authentication."""

from __future__ import annotations

import asyncio
import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from email.utils import formatdate
from http import HTTPStatus
from time import time
from typing import Final

from starlette.routing import Route
from uvicorn.config import Config
from uvicorn.server import ServerState

from common.monitoring.metrics import IngressMetrics
from ingress.auth.client import NOT_FOR_STREAMS
from ingress.auth.proxies import TrustedProxies
from ingress.http.authentication import Authenticate, everyone
from ingress.http.endpoints import application
from ingress.http.refusal import Refusal, RefusalShape, Refused
from ingress.http.refusals import Refusals
from ingress.request import Request
from ingress.sockets.gate import SENTENCES, Full, Gate, Place
from ingress.sockets.pinger import Pinger
from ingress.sockets.shell import OpenConnection, StreamRoute

# Longest time between two requests of one connection.
KEEP_ALIVE_S: Final = 15
BODY_WINDOW_S: Final = 30.0
MIN_BODY_RATE: Final = 8192
PING_INTERVAL_S: Final = 20.0

TOO_MANY: Final = {
    Full.CONNECTIONS: Refusal(HTTPStatus.SERVICE_UNAVAILABLE, SENTENCES[Full.CONNECTIONS]),
    Full.ADDRESS: Refusal(HTTPStatus.TOO_MANY_REQUESTS, SENTENCES[Full.ADDRESS]),
}


@dataclass(frozen=True, slots=True)
class HttpLimits:
    """Limits of one connection of the WebSocket port.

    max_frame_bytes: longest message of a stream.   head_timeout_s: longest time for the head of a request.
    keep_alive_s: longest time of a connection without a request.
    body_window_s, min_body_rate: in each window of so many seconds a body has to end, or to grow by at least
        `min_body_rate` bytes a second on average.
    ping_interval_s: seconds between two pings to the client of a stream; 0 for no pings.
    """

    max_frame_bytes: int
    head_timeout_s: float
    keep_alive_s: float = KEEP_ALIVE_S
    body_window_s: float = BODY_WINDOW_S
    min_body_rate: int = MIN_BODY_RATE
    ping_interval_s: float = PING_INTERVAL_S

    @property
    def min_body_bytes(self) -> int:
        """Bytes by which a body has to grow in each window."""
        return math.ceil(self.body_window_s * self.min_body_rate)


class Site:
    """The objects that all connections of the port share.

    streams: routes by the path of the WebSocket.
    endpoints: endpoints of plain HTTP.
    authenticate: authenticates every request first.
    proxies: the proxies that may state a client's address.
    shapes: formats of refusals by path, where they are not plain text.
    metrics: count refusals.
    """

    def __init__(
        self,
        gate: Gate,
        limits: HttpLimits,
        streams: Mapping[str, StreamRoute],
        *,
        endpoints: Iterable[Route] = (),
        authenticate: Authenticate = everyone,
        proxies: TrustedProxies | None = None,
        shapes: Mapping[str, RefusalShape] | None = None,
        metrics: IngressMetrics | None = None,
    ) -> None:
        self.gate: Final = gate
        self.limits: Final = limits
        self.authenticate: Final = authenticate
        self.pinger: Final = Pinger(limits.ping_interval_s)
        self.proxies: Final = proxies or TrustedProxies(())
        self.endpoints: Final = tuple(endpoints)
        self.streams: Final = streams
        self._shapes = shapes or {}
        self.refusals: Final = Refusals(metrics or IngressMetrics())
        self.config: Final = Config(
            self.refusals.noting(application(self.endpoints, streams)),
            loop="none",
            http="httptools",
            ws="none",
            lifespan="off",
            log_config=None,
            access_log=False,
            proxy_headers=False,
            server_header=False,
            date_header=False,
            timeout_keep_alive=limits.keep_alive_s,  # type: ignore[arg-type]  # it is a number of seconds
        )
        self.config.load()
        self.state: Final = ServerState()
        self.num_slow_bodies = 0  # requests that were ended because their bodies came too slowly
        self._dated = 0

    def identified(self, request: Request) -> Request:
        """Return the request with its authenticated client. Raises Refused."""
        return replace(request, client=self.authenticate(request))

    def stream(self, request: Request, place: Place) -> OpenConnection:
        """Return what opens the connection for an authenticated upgrade to WebSocket. Raises Refused."""
        if request.client is None or not request.client.may("stream"):
            raise Refused(Refusal(HTTPStatus.FORBIDDEN, NOT_FOR_STREAMS))
        full = place.belongs_to(request.address)
        if full is not None:
            raise Refused(TOO_MANY[full])
        route = self.streams.get(request.path)
        if route is None:
            paths = ", ".join(self.streams)
            raise Refused(Refusal(HTTPStatus.NOT_FOUND, f"No streams are at this path; they are at {paths}."))
        return route(request)

    def refused(self, request: Request, refusal: Refusal) -> Refusal:
        """Note a refusal, and return it in the format of the path's API."""
        return self.shaped(request.path, self.refusals.note(refusal, request))

    def shaped(self, path: str, refusal: Refusal) -> Refusal:
        """Return a refusal in the format of the path's API, unless it has that format already."""
        shape = self._shapes.get(path)
        return refusal if shape is None or refusal.body is not None else shape(refusal)

    @property
    def num_connections(self) -> int:
        """Connections that are no streams."""
        return len(self.state.connections)

    def update_date(self) -> None:
        """Set the date of the next responses to the present (RFC 9110, section 6.6.1)."""
        now = int(time())
        if now != self._dated:
            self._dated = now
            self.state.default_headers = [(b"date", formatdate(now, usegmt=True).encode())]

    def drain(self) -> None:
        """Let running requests end, and take no more requests of their connections."""
        for protocol in list(self.state.connections):
            protocol.shutdown()

    async def answered(self) -> None:
        """Wait until no request is running."""
        while self.state.tasks:
            await asyncio.wait(list(self.state.tasks))

    def abort(self) -> None:
        """Close all connections that are no streams."""
        for protocol in list(self.state.connections):
            protocol.transport.abort()
