"""What a group tells a lane arrives as it was."""

from __future__ import annotations

from dataclasses import replace

import orjson
import pytest

from common.presence.served_model import ServedModel
from gpu_worker.capacity import Capacity
from gpu_worker.engine.slots.clock import ChunkClock
from gpu_worker.lanes.facts import LaneFacts
from gpu_worker.model.config import PromptConfig
from gpu_worker.steps.null import NullClock
from tests.device.lane_recorder import SHAPE

CLOCKS = (ChunkClock(160, 200, 8, 2), NullClock(1280, 1280, 1, 2))


@pytest.mark.parametrize("clock", CLOCKS, ids=lambda clock: type(clock).__name__)
@pytest.mark.parametrize("full", [False, True])
def test_facts_travel_as_json(clock: ChunkClock, full: bool) -> None:
    shape = replace(SHAPE, clock=clock)
    facts = LaneFacts(
        shape,
        16,
        33,
        10_240,
        b"\x00vocabulary\xff" if full else None,
        PromptConfig(4, (("de", 1), ("en", 2))) if full else None,
        {"model": "small", "chunk_ms": "160"},
        ServedModel("small", "weights", 160, "70, 1", "on"),
        Capacity(12, 6, 0.16, is_least=False) if full else None,
        1024,
    )
    told = LaneFacts.from_message(orjson.loads(orjson.dumps(facts.to_message())))
    assert told == facts
    assert type(told.shape.clock) is type(clock)
