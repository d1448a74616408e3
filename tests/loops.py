"""Event loops for tests of what behaves otherwise on each: a conftest.py imports the hook."""

from __future__ import annotations

import asyncio
from collections.abc import Callable

import pytest
import uvloop


def pytest_asyncio_loop_factories(item: pytest.Item) -> dict[str, Callable[[], asyncio.AbstractEventLoop]]:
    """Run each test of a coroutine on the loop of production, and on that of a machine without uvloop.

    A test or a module with the mark `one_loop` is run on the first alone.
    """
    production: dict[str, Callable[[], asyncio.AbstractEventLoop]] = {"uvloop": uvloop.new_event_loop}
    if item.get_closest_marker("one_loop") is not None:
        return production
    return {**production, "asyncio": asyncio.new_event_loop}
