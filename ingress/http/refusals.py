"""Log lines and metrics of refused requests: one line for each, as long as they are few."""

from __future__ import annotations

import logging
import time
from collections.abc import Awaitable, Callable
from http import HTTPStatus
from typing import Any, Final

from common.monitoring.families import OTHER_STATUS
from common.monitoring.metrics import IngressMetrics
from ingress.auth.throttle import Throttle
from ingress.http.refusal import Refusal
from ingress.request import Request

logger = logging.getLogger(__name__)

LINES_PER_MINUTE: Final = 120
LINES_AT_ONCE: Final = 20
# Most characters of a path in the log; the client chose the path, and the log escapes it.
_MAX_PATH: Final = 100
_MAX_REASON: Final = 200

App = Callable[[Any, Any, Any], Awaitable[None]]


class Refusals:
    """Counts refusals of plain HTTP and of WebSocket requests, and logs the first of them.

    now: monotonic seconds.
    """

    def __init__(self, metrics: IngressMetrics, now: Callable[[], float] = time.monotonic) -> None:
        self._metrics = metrics
        self._now = now
        self._lines = Throttle()
        self._untold = 0

    def note(self, refusal: Refusal, request: Request | None) -> Refusal:
        """Count a refusal, and return it. request: None where its head was not read."""
        self._note(refusal.status, refusal.sentence, request)
        return refusal

    def _note(self, status: HTTPStatus, reason: str, request: Request | None) -> None:
        counts = self._metrics.refused_requests
        name = str(status.value)
        counts[name if name in counts else OTHER_STATUS] += 1
        client = None if request is None else request.client
        if status == HTTPStatus.FORBIDDEN and client is not None:
            # A page of another origin is refused before its client is authenticated.
            self._metrics.auth_failures["scope"] += 1
        if not self._lines.take(None, LINES_PER_MINUTE, LINES_AT_ONCE, self._now()):
            self._untold += 1
            return
        untold, self._untold = self._untold, 0
        logger.info(
            "refused: %d, %s, key %s: %s%s",
            status,
            "no request" if request is None else f"{request.method} {request.path[:_MAX_PATH]}",
            (client.name if client is not None else "") or "-",
            reason[:_MAX_REASON],
            f" ({untold} more before it)" if untold else "",
        )

    def noting(self, app: App) -> App:
        """Return the application with its refusals noted; the scope's state has the reason as `refused`."""

        async def noted(scope: Any, receive: Any, send: Any) -> None:
            async def sent(message: Any) -> None:
                if message["type"] == "http.response.start" and message["status"] >= HTTPStatus.BAD_REQUEST:
                    state, status = scope["state"], HTTPStatus(message["status"])
                    self._note(status, state.get("refused", status.phrase), state.get("request"))
                await send(message)

            await app(scope, receive, sent)

        return noted
