"""Faults of a client's events, in the format of OpenAI's `error`."""

from __future__ import annotations

from http import HTTPStatus
from typing import Any, Final

from common.errors import ErrorCode, shown

INVALID_REQUEST: Final = "invalid_request_error"
SERVER_ERROR: Final = "server_error"

# Error codes for which OpenAI has a name of its own; the others keep theirs.
_CODES: Final = {ErrorCode.UNAUTHORIZED: "invalid_api_key", ErrorCode.IDLE_TIMEOUT: "session_expired"}


class EventFault(Exception):  # noqa: N818 - the name says it
    """A fault of one event; the session goes on.

    code: one of OpenAI's codes, such as `invalid_value`.   param: path of the field at fault, if any.
    """

    def __init__(self, code: str, message: str, param: str | None = None) -> None:
        super().__init__(message)
        self.code = code
        self.message = message
        self.param = param


def invalid(param: str, takes: str, value: object) -> EventFault:
    """Return the fault of a field with a wrong value. takes: the accepted values, in words."""
    return EventFault("invalid_value", f"'{param}' takes {takes}, not {shown(value)}.", param)


def code_of(code: str) -> str:
    """Return OpenAI's name of one of the codes of common/errors.py."""
    return _CODES.get(ErrorCode(code), code)


def error_fields(kind: str, code: str | None, message: str, param: str | None = None) -> dict[str, Any]:
    """Return the object of an error, for HTTP and for events. kind: INVALID_REQUEST or SERVER_ERROR."""
    return {"type": kind, "code": code, "message": message, "param": param}


def kind_of(status: int) -> str:
    """Return INVALID_REQUEST or SERVER_ERROR, by the status of a refusal."""
    return INVALID_REQUEST if status < HTTPStatus.INTERNAL_SERVER_ERROR else SERVER_ERROR
