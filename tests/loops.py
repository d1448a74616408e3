"""Event loops for tests of what behaves otherwise on each: a conftest.py imports the hook."""

from __future__ import annotations

import asyncio
from collections.abc import Callable

import uvloop


def pytest_asyncio_loop_factories() -> dict[str, Callable[[], asyncio.AbstractEventLoop]]:
    """Run each test of a coroutine on the loop of production, and on that of a machine without uvloop."""
    return {"uvloop": uvloop.new_event_loop, "asyncio": asyncio.new_event_loop}
