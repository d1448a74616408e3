"""Fixtures of the composition root's tests."""

from __future__ import annotations

import pytest

from tests.ports import free_ports


@pytest.fixture
def free_port() -> int:
    """A port that nobody listens on just now."""
    return free_ports(1)[0]
