"""The WebSocket handshake (RFC 6455, section 4.2) of a request; the websockets package checks it."""

from __future__ import annotations

from collections.abc import Sequence
from http import HTTPStatus
from typing import Final

from websockets.datastructures import Headers
from websockets.http11 import Request as WebSocketRequest
from websockets.http11 import Response
from websockets.server import ServerProtocol
from websockets.typing import Subprotocol

from ingress.auth.credentials import answered_subprotocol
from ingress.http.refusal import Refusal, Refused
from ingress.request import Request

HAS_BODY: Final = Refusal(HTTPStatus.BAD_REQUEST, "A request that opens a WebSocket has no body.")
IS_BEHIND: Final = Refusal(
    HTTPStatus.BAD_REQUEST, "A WebSocket cannot be opened behind a request that is not answered yet."
)


def accepted(request: Request) -> Response:
    """Return the response that opens the WebSocket. Raises Refused where the handshake is not valid."""
    headers = Headers()
    for name, value in request.headers:
        headers[name] = value  # adds to the headers of the same name
    response = ServerProtocol(select_subprotocol=_answered).accept(WebSocketRequest(request.path, headers))
    if response.status_code == HTTPStatus.SWITCHING_PROTOCOLS:
        return response
    sentence = (response.body or b"").decode().strip()
    upgrade = (("Upgrade", "websocket"),) if response.status_code == HTTPStatus.UPGRADE_REQUIRED else ()
    raise Refused(Refusal(HTTPStatus(response.status_code), sentence, upgrade))


def _answered(protocol: ServerProtocol, offered: Sequence[Subprotocol]) -> Subprotocol | None:
    """Return the subprotocol of the answer.

    No subprotocol changes the protocol of the stream. But browsers, which pass secrets as subprotocols, close
    a connection whose server chooses none of the offered ones.
    """
    chosen = answered_subprotocol(list(offered))
    return None if chosen is None else Subprotocol(chosen)
