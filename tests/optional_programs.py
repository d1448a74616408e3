"""Programs that some tests need and that a fresh machine lacks.

There, these tests are left out, and the summary says so in one line. With ``CI=true`` all are wanted, so that
a missing one fails its tests.

A test that needs one carries the mark ``needs_program("redis-cli")``; `tests.servers.SERVER_KINDS` asks here
whether there is a second kind of server.
"""

from __future__ import annotations

import os
import shutil
from typing import Final

import pytest

# Both are brought by Debian's package redis-server, which is what the summary says.
OPTIONAL_PROGRAMS: Final = ("redis-server", "redis-cli")


def in_ci() -> bool:
    """Whether nothing may be left out."""
    return os.environ.get("CI", "").lower() == "true"


def is_wanted(program: str) -> bool:
    """Whether tests that need a program are to run."""
    return in_ci() or shutil.which(program) is not None


def pytest_configure(config: pytest.Config) -> None:
    """Register the mark, also for the runs inside tests."""
    config.addinivalue_line("markers", "needs_program(name): left out where the program is not installed")


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Leave out what needs a program that is not there."""
    left_out = [
        item
        for item in items
        if not all(is_wanted(mark.args[0]) for mark in item.iter_markers("needs_program"))
    ]
    if left_out:
        config.hook.pytest_deselected(items=left_out)
        items[:] = [item for item in items if item not in left_out]


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """Say what was not tried, and how to add it."""
    missing = [program for program in OPTIONAL_PROGRAMS if not is_wanted(program)]
    if missing:
        terminalreporter.write_line(
            f"Not tried, for want of {' and '.join(missing)}: all tests of Redis on a second kind of server,"
            " and what docs/redis.md says to type. To add them: apt-get install redis-server",
            yellow=True,
        )
