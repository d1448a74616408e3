"""Close codes of a WebSocket after an error, for dialects that have no codes of their own."""

from __future__ import annotations

from typing import Final

from common.errors import ERROR_SPECS, ErrorCode, Fault, StreamError
from ingress.dialects.dialect import Farewell

# Close codes of WebSocket (RFC 6455, section 7.4, and IANA's registry).
NORMAL_CLOSURE: Final = 1000
POLICY_VIOLATION: Final = 1008
MESSAGE_TOO_BIG: Final = 1009
INTERNAL_ERROR: Final = 1011
SERVICE_RESTART: Final = 1012
TRY_AGAIN_LATER: Final = 1013
_CLOSE_CODES: Final = {
    ErrorCode.FRAME_TOO_LONG: MESSAGE_TOO_BIG,
    ErrorCode.DRAINING: SERVICE_RESTART,
    ErrorCode.INTERNAL: INTERNAL_ERROR,
}


def farewell_of(error: StreamError | None) -> Farewell:
    """Return code and reason of the close after an error, whose code is the reason; None: a normal close."""
    if error is None:
        return Farewell(None, NORMAL_CLOSURE, "")
    code = _CLOSE_CODES.get(error.code)
    if code is None:
        client = ERROR_SPECS[error.code].fault is Fault.CLIENT
        code = POLICY_VIOLATION if client else TRY_AGAIN_LATER
    return Farewell(error, code, error.code.value)
