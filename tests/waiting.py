"""Waiting for a condition, never for a time.

Time-outs say that a condition does not come about at all: on a slow machine nothing is late.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable
from typing import Any, Final, TypeVar

T = TypeVar("T")

WAIT_S: Final = 90.0
_POLL_S: Final = 0.01


def wait_until(
    condition: Callable[[], T | None], timeout_s: float = WAIT_S, what: str = "the condition"
) -> T:
    """Return the first true value of the condition; fail when there is none in time."""
    deadline = time.monotonic() + timeout_s
    while not (value := condition()):
        assert time.monotonic() < deadline, f"{what} did not come about within {timeout_s} s"
        time.sleep(_POLL_S)
    return value


async def until(condition: Callable[[], Any], timeout_s: float = WAIT_S, what: str = "the condition") -> None:
    """The same on an event loop, which runs in between; the condition may be a coroutine function."""
    deadline = time.monotonic() + timeout_s
    while True:
        value = condition()
        if isinstance(value, Awaitable):
            value = await value
        if value:
            return
        assert time.monotonic() < deadline, f"{what} did not come about within {timeout_s} s"
        await asyncio.sleep(_POLL_S)
