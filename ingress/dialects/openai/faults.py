"""What is wrong with an event of the client, as OpenAI's `error` says it."""

from __future__ import annotations

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
    """The fault of a field whose value it does not take. takes: what it takes, in words."""
    return EventFault("invalid_value", f"'{param}' takes {takes}, not {shown(value)}.", param)


def code_of(code: str) -> str:
    """Return what OpenAI calls one of the codes of common/errors.py."""
    return _CODES.get(ErrorCode(code), code)


def error_fields(
    kind: str, code: str, message: str, param: str | None = None, event_id: str | None = None
) -> dict[str, Any]:
    """Return the member `error` of an event. event_id: of the client's event that is at fault."""
    return {"type": kind, "code": code, "message": message, "param": param, "event_id": event_id}
