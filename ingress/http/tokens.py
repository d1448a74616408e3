"""Temporary tokens over HTTP: what a holder of a key asks for, to hand it to a browser.

`POST /v1/tokens` is our own; `/v1/auth/grant` has the shape of Deepgram's, and
`/v1/realtime/client_secrets` that of OpenAI's.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from http import HTTPStatus
from typing import Any, Final

import orjson
from starlette.requests import Request as HttpRequest
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from ingress.auth.client import Client
from ingress.auth.key_ring import KeyRing
from ingress.auth.tokens import DEFAULT_TTL_S, MAX_TTL_S, make_token
from ingress.http.endpoints import endpoint

_MAX_BODY_BYTES: Final = 4096
_OPENAI_TTL_S: Final = 600


class _Refused(Exception):  # noqa: N818 - the name says it
    """A request for a token that is refused, with a status and a sentence."""

    def __init__(self, status: HTTPStatus, sentence: str) -> None:
        super().__init__(sentence)
        self.status = status


def tokens_endpoints(ring: KeyRing | None) -> tuple[Route, ...]:
    """Return the rows of the table of endpoints; none where the server has no keys."""
    if ring is None:
        return ()

    async def own(request: HttpRequest) -> Response:
        fields = await _body(request)
        token, expires_s = _mint(ring, request, _ttl(fields.get("ttl_seconds"), "ttl_seconds", DEFAULT_TTL_S))
        return JSONResponse({"token": token, "expires_at": expires_s})

    async def deepgram(request: HttpRequest) -> Response:
        fields = await _body(request)
        ttl_s = _ttl(fields.get("ttl_seconds"), "ttl_seconds", DEFAULT_TTL_S)
        token, _ = _mint(ring, request, ttl_s)
        return JSONResponse({"access_token": token, "expires_in": ttl_s})

    async def openai(request: HttpRequest) -> Response:
        fields = await _body(request)
        after = fields.get("expires_after")
        seconds = after.get("seconds") if isinstance(after, dict) else None
        token, expires_s = _mint(ring, request, _ttl(seconds, "expires_after.seconds", _OPENAI_TTL_S))
        return JSONResponse({"value": token, "expires_at": expires_s, "session": fields.get("session") or {}})

    return (
        endpoint("/v1/tokens", _answering(own), "POST"),
        endpoint("/v1/auth/grant", _answering(deepgram), "POST"),
        endpoint("/v1/realtime/client_secrets", _answering(openai), "POST"),
    )


_Answer = Callable[[HttpRequest], Awaitable[Response]]


def _answering(answer: _Answer) -> _Answer:
    async def answered(request: HttpRequest) -> Response:
        try:
            return await answer(request)
        except _Refused as refused:
            return JSONResponse(
                {"error": {"message": str(refused), "type": "invalid_request_error"}}, refused.status
            )

    return answered


async def _body(request: HttpRequest) -> dict[str, Any]:
    data = b""
    async for part in request.stream():
        data += part
        if len(data) > _MAX_BODY_BYTES:
            raise _Refused(HTTPStatus.REQUEST_ENTITY_TOO_LARGE, f"The body is over {_MAX_BODY_BYTES} bytes.")
    if not data.strip():
        return {}
    try:
        fields = orjson.loads(data)
    except orjson.JSONDecodeError:
        raise _Refused(HTTPStatus.BAD_REQUEST, "The body is not JSON.") from None
    if not isinstance(fields, dict):
        raise _Refused(HTTPStatus.BAD_REQUEST, "The body is a JSON object.")
    return fields


def _ttl(value: object, name: str, default: int) -> int:
    if value is None:
        return default
    if not isinstance(value, int) or isinstance(value, bool) or not 1 <= value <= MAX_TTL_S:
        raise _Refused(HTTPStatus.BAD_REQUEST, f"'{name}' is a whole number from 1 to {MAX_TTL_S}.")
    return value


def _mint(ring: KeyRing, request: HttpRequest, ttl_s: int) -> tuple[str, int]:
    client: Client = request.scope["state"]["request"].client
    if client.key_id is None or not client.may("mint"):
        raise _Refused(HTTPStatus.FORBIDDEN, "The key may not make temporary tokens (scope 'mint').")
    return make_token(ring.token_secret, client.key_id, ttl_s)
