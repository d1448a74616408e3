"""Fixtures of the tests on real processes."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from parakeet.serve.embedded_redis import EmbeddedRedis
from tests.stack import Stack


@pytest.fixture
def stack(redis_url: str, tmp_path: Path) -> Iterator[Stack]:
    """A stack on a server that is checked for leaks."""
    made = Stack(redis_url, tmp_path)
    yield made
    made.close()


@pytest.fixture
def own_stack(own_server: EmbeddedRedis, tmp_path: Path) -> Iterator[Stack]:
    """A stack on a server that the test may disturb."""
    made = Stack(own_server.url, tmp_path)
    yield made
    made.close()
