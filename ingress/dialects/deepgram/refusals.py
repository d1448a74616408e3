"""Refusals in Deepgram's format: a JSON body, and headers that some clients log."""

from __future__ import annotations

import uuid
from collections.abc import Mapping
from dataclasses import replace
from http import HTTPStatus
from typing import Final

import orjson

from common.errors import ErrorCode, StreamError
from ingress.http.refusal import Refusal, Refused

_RETRY_AFTER: Final = ("Retry-After", "5")
_CODES: Final[Mapping[int, str]] = {
    HTTPStatus.UNAUTHORIZED: "INVALID_AUTH",
    HTTPStatus.FORBIDDEN: "INSUFFICIENT_PERMISSIONS",
    HTTPStatus.REQUEST_TIMEOUT: "SLOW_UPLOAD",
    HTTPStatus.TOO_MANY_REQUESTS: "TOO_MANY_REQUESTS",
    HTTPStatus.REQUEST_ENTITY_TOO_LARGE: "PAYLOAD_TOO_LARGE",
    HTTPStatus.SERVICE_UNAVAILABLE: "SERVICE_UNAVAILABLE",
}
# A full cluster answers 503 and not 429: some clients give up at a 429, and all try again after a 503.
_STATUS_OF: Final = {
    ErrorCode.UNAUTHORIZED: HTTPStatus.UNAUTHORIZED,
    ErrorCode.OVER_LIMIT: HTTPStatus.TOO_MANY_REQUESTS,
    ErrorCode.INTERNAL: HTTPStatus.INTERNAL_SERVER_ERROR,
}


def code_of(status: int) -> str:
    """Return Deepgram's code for a status."""
    other = "Bad Request" if status < HTTPStatus.INTERNAL_SERVER_ERROR else "INTERNAL_SERVER_ERROR"
    return _CODES.get(status, other)


def body_of(status: int, sentence: str, request_id: str, *, code: str | None = None) -> dict[str, str]:
    """Return the fields of a refusal's body."""
    return {"err_code": code or code_of(status), "err_msg": sentence, "request_id": request_id}


def headers_of(sentence: str, request_id: str) -> dict[str, str]:
    """Return the headers of a refusal.

    A sentence may come from a decoder or quote a client: a header takes no control characters, and none
    beyond ASCII.
    """
    reason = "".join(letter if letter.isascii() and letter.isprintable() else "?" for letter in sentence)
    return {"dg-request-id": request_id, "dg-error": reason}


def shaped(refusal: Refusal, *, request_id: str | None = None, code: str | None = None) -> Refusal:
    """Return a refusal in Deepgram's format."""
    request_id = request_id or str(uuid.uuid4())
    body = body_of(refusal.status, refusal.sentence, request_id, code=code)
    return replace(
        refusal,
        headers=(*refusal.headers, *headers_of(refusal.sentence, request_id).items()),
        body=orjson.dumps(body),
        content_type="application/json",
    )


def bad_parameter(sentence: str, request_id: str) -> Refused:
    """Return the exception that refuses a request with a wrong query."""
    refusal = Refusal(HTTPStatus.BAD_REQUEST, sentence)
    return Refused(shaped(refusal, request_id=request_id, code="INVALID_QUERY_PARAMETER"))


def refusal_of(error: StreamError, request_id: str) -> Refusal:
    """Return the answer, before the upgrade, to a request that gets no stream."""
    status = _STATUS_OF.get(error.code, HTTPStatus.SERVICE_UNAVAILABLE)
    retry = status in (HTTPStatus.SERVICE_UNAVAILABLE, HTTPStatus.TOO_MANY_REQUESTS)
    return shaped(Refusal(status, error.message, (_RETRY_AFTER,) if retry else ()), request_id=request_id)
