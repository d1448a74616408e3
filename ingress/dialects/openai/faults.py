"""What is wrong with an event of the client, as OpenAI's `error` says it."""

from __future__ import annotations

from http import HTTPStatus
from typing import Any, Final

from common.errors import ErrorCode, shown

INVALID_REQUEST: Final = "invalid_request_error"
SERVER_ERROR: Final = "server_error"

# Codes of ours that have a name in OpenAI's words; others keep theirs.
_CODES: Final = {ErrorCode.UNAUTHORIZED: "invalid_api_key", ErrorCode.IDLE_TIMEOUT: "session_expired"}


class EventFault(Exception):  # noqa: N818 - the name says it
    """A fault of one event; the session goes on.

    code: of OpenAI's, such as `invalid_value`.   param: the path of the field, where it is one's fault.
    """

    def __init__(self, code: str, message: str, param: str | None = None) -> None:
        super().__init__(message)
        self.code = code
        self.message = message
        self.param = param


def invalid(param: str, takes: str, value: object) -> EventFault:
    """Return the fault of a field whose value it does not take. takes: what it takes, in words."""
    return EventFault("invalid_value", f"'{param}' takes {takes}, not {shown(value)}.", param)


def code_of(code: str) -> str:
    """Return what OpenAI calls one of the codes of common/errors.py."""
    return _CODES.get(ErrorCode(code), code)


def error_fields(kind: str, code: str | None, message: str, param: str | None = None) -> dict[str, Any]:
    """Return an error as OpenAI writes it, over HTTP and in events. kind: INVALID_REQUEST or SERVER_ERROR."""
    return {"type": kind, "code": code, "message": message, "param": param}


def kind_of(status: int) -> str:
    """Return whose fault the refusal of a request is, by its status."""
    return INVALID_REQUEST if status < HTTPStatus.INTERNAL_SERVER_ERROR else SERVER_ERROR
