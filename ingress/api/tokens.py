"""Temporary tokens over HTTP: the holder of a key requests one and hands it to a browser.

`POST /v1/tokens` is our own, and `/v1/auth/grant` has the shape of Deepgram's.
`/v1/realtime/client_secrets` and, in the beta, `/v1/realtime/transcription_sessions` are OpenAI's: their
tokens hold the configuration of the session.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from http import HTTPStatus
from typing import Any, Final
from uuid import uuid4

import orjson
from starlette.requests import Request as HttpRequest
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from ingress.auth.client import Client
from ingress.auth.key_ring import KeyRing
from ingress.auth.tokens import DEFAULT_TTL_S, MAX_TTL_S, make_token
from ingress.dialects.openai.faults import INVALID_REQUEST, EventFault, error_fields
from ingress.dialects.openai.session import Session
from ingress.http.endpoints import endpoint

# A token holds the requested session, and the token itself has a maximum length.
_MAX_BODY_BYTES: Final = 4096
_OPENAI_TTL_S: Final = 600  # default where the request names none; OpenAI's default too


class _NoToken(Exception):  # noqa: N818 - the name says it
    """A refused request for a token, with a status and a sentence; `param` is the field at fault."""

    def __init__(self, status: HTTPStatus, sentence: str, param: str | None = None) -> None:
        super().__init__(sentence)
        self.status = status
        self.param = param


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
        asked = fields.get("session")
        session = _session({"type": "transcription"} if asked is None else asked)
        token, expires_s = _mint(ring, request, _openai_ttl(fields), session)
        shown = {"type": "transcription", **_described(expires_s), **session.shown()}
        return JSONResponse({"value": token, "expires_at": expires_s, "session": shown})

    async def openai_beta(request: HttpRequest) -> Response:
        fields = await _body(request)
        session = _session(fields)
        token, expires_s = _mint(ring, request, _openai_ttl(fields), session)
        secret = {"value": token, "expires_at": expires_s}
        return JSONResponse({**_described(expires_s), **session.shown_in_beta(), "client_secret": secret})

    return (
        endpoint("/v1/tokens", _answering(own), "POST"),
        endpoint("/v1/auth/grant", _answering(deepgram), "POST"),
        endpoint("/v1/realtime/client_secrets", _answering(openai), "POST"),
        endpoint("/v1/realtime/transcription_sessions", _answering(openai_beta), "POST"),
    )


_Answer = Callable[[HttpRequest], Awaitable[Response]]


def _answering(answer: _Answer) -> _Answer:
    async def answered(request: HttpRequest) -> Response:
        try:
            return await answer(request)
        except _NoToken as refused:
            request.scope["state"]["refused"] = str(refused)
            error = error_fields(INVALID_REQUEST, None, str(refused), refused.param)
            return JSONResponse({"error": error}, refused.status)

    return answered


async def _body(request: HttpRequest) -> dict[str, Any]:
    data = b""
    async for part in request.stream():
        data += part
        if len(data) > _MAX_BODY_BYTES:
            raise _NoToken(HTTPStatus.REQUEST_ENTITY_TOO_LARGE, f"The body is over {_MAX_BODY_BYTES} bytes.")
    if not data.strip():
        return {}
    try:
        fields = orjson.loads(data)
    except orjson.JSONDecodeError:
        raise _NoToken(HTTPStatus.BAD_REQUEST, "The body is not JSON.") from None
    if not isinstance(fields, dict):
        raise _NoToken(HTTPStatus.BAD_REQUEST, "The body is a JSON object.")
    return fields


def _ttl(value: object, name: str, default: int) -> int:
    if value is None:
        return default
    if not isinstance(value, int) or isinstance(value, bool) or not 1 <= value <= MAX_TTL_S:
        raise _NoToken(HTTPStatus.BAD_REQUEST, f"'{name}' is a whole number from 1 to {MAX_TTL_S}.", name)
    return value


def _openai_ttl(fields: dict[str, Any]) -> int:
    after = fields.get("expires_after")
    seconds = after.get("seconds") if isinstance(after, dict) else None
    return _ttl(seconds, "expires_after.seconds", _OPENAI_TTL_S)


def _session(asked: object) -> Session:
    try:
        return Session().updated(asked)
    except EventFault as fault:
        raise _NoToken(HTTPStatus.BAD_REQUEST, fault.message, fault.param) from None


def _described(expires_s: int) -> dict[str, Any]:
    """Return the fields that describe a session which is not open yet."""
    return {"id": f"sess_{uuid4().hex}", "object": "realtime.transcription_session", "expires_at": expires_s}


def _mint(ring: KeyRing, request: HttpRequest, ttl_s: int, session: Session | None = None) -> tuple[str, int]:
    client: Client = request.scope["state"]["request"].client
    if client.key_id is None or not client.may("mint"):
        raise _NoToken(HTTPStatus.FORBIDDEN, "The key may not make temporary tokens (scope 'mint').")
    held = "" if session is None else orjson.dumps({"type": "transcription", **session.shown()}).decode()
    try:
        return make_token(ring.token_secret, client.key_id, ttl_s, session=held)
    except ValueError:
        raise _NoToken(HTTPStatus.BAD_REQUEST, "The session is too long for a token.", "session") from None
