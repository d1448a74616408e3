"""The transport of one answer, as uvicorn has it."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any, cast


def answering(transport: asyncio.Transport, on_close: Callable[[], None]) -> asyncio.Transport:
    """Return a connection's transport, except that its `close` calls `on_close`.

    uvicorn closes after an answer that says `Connection: close`. If the client still sends its body, the
    kernel resets a connection that is closed with unread input, and the answer may be lost.
    """
    return cast(asyncio.Transport, _Answering(transport, on_close))


class _Answering:
    def __init__(self, transport: asyncio.Transport, on_close: Callable[[], None]) -> None:
        self._transport = transport
        self.close = on_close

    def __getattr__(self, name: str) -> Any:
        return getattr(self._transport, name)
