"""Lanes over steps that write down what they are told."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.device.lane_recorder import recorded_lanes
from tests.device.lane_stack import LaneStack


@pytest.fixture
def stack() -> Iterator[LaneStack]:
    stack = recorded_lanes()
    yield stack
    for port in stack.ports:
        port.close()
