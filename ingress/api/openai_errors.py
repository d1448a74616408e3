"""Refusals in the format of OpenAI's API: a JSON object with the member `error`."""

from __future__ import annotations

from dataclasses import replace
from http import HTTPStatus
from typing import Final

import orjson

from ingress.dialects.openai.faults import error_fields, kind_of
from ingress.http.refusal import Refusal

_JSON: Final = "application/json"
_CODES: Final = {
    HTTPStatus.UNAUTHORIZED: "invalid_api_key",
    HTTPStatus.REQUEST_TIMEOUT: "request_timeout",
    HTTPStatus.TOO_MANY_REQUESTS: "rate_limit_exceeded",
}


def openai_refusal(refusal: Refusal) -> Refusal:
    """Return a refusal with the body that OpenAI's clients read."""
    error = error_fields(kind_of(refusal.status), _CODES.get(refusal.status), refusal.sentence)
    return replace(refusal, body=orjson.dumps({"error": error}), content_type=_JSON)
