"""How a WebSocket is closed after an error, in any dialect that has no codes of its own."""

from __future__ import annotations

from typing import Final

from common.errors import ERROR_SPECS, ErrorCode, Fault, StreamError
from ingress.dialects.dialect import Farewell

# Close codes of WebSocket (RFC 6455, section 7.4, and the registry behind it).
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
    """Return how to close after an error, whose code is the reason; or in good order."""
    if error is None:
        return Farewell(None, NORMAL_CLOSURE, "")
    code = _CLOSE_CODES.get(error.code)
    if code is None:
        client = ERROR_SPECS[error.code].fault is Fault.CLIENT
        code = POLICY_VIOLATION if client else TRY_AGAIN_LATER
    return Farewell(error, code, error.code.value)
