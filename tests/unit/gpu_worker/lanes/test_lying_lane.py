"""Whatever a lane writes where its group reads, it ends alone: the other one's words stay what they are."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
from numpy.typing import NDArray

from gpu_worker.engine.engine import SpeechEngine
from gpu_worker.engine.steps import UNKNOWN_END, AllocateRings, Field
from gpu_worker.lanes.segment import FlightBuffer
from gpu_worker.lanes.steps import LaneSteps
from gpu_worker.model.tokenizer import Tokenizer
from gpu_worker.steps.factory import make_model_engine
from gpu_worker.steps.null import Letters, NullEngine
from tests.contracts.engine_contract import Sizes, run, told
from tests.device.lane_stack import lane_stack
from tests.oracle.models import JFK, random_model, speech
from tests.unit.gpu_worker.engine.test_engine_contract import config_of
from tests.waiting import wait_until

NUM_SLOTS = 8
Rng = np.random.Generator


def model_engine(rings: AllocateRings) -> SpeechEngine:
    sizes = Sizes(num_slots=NUM_SLOTS, rows=4, turns=True)
    return make_model_engine(random_model(2), config_of(sizes, (70, 1)), rings=rings)


def null_engine(rings: AllocateRings) -> SpeechEngine:
    return NullEngine(NUM_SLOTS, turn_detection=True, rings=rings)


def anything(lane: LaneSteps, rng: Rng) -> None:
    """Bytes of any value everywhere, but in the numbers of rows and of slots that begin."""
    buffer = fill(lane, rng)
    buffer._words[:3] = (*rng.integers(0, 4, 2), 0)


def any_words(lane: LaneSteps, rng: Rng) -> None:
    """Bytes of any value everywhere."""
    fill(lane, rng)


def fill(lane: LaneSteps, rng: Rng) -> FlightBuffer:
    buffer = lane._area.flight(lane._area.launched)
    parts = (buffer._words, buffer._stages, buffer._rows, buffer._table, buffer._resets)
    for part in parts:
        part.view(np.uint8)[:] = rng.integers(0, 256, part.nbytes, dtype=np.uint8)
    return buffer


def lawful_nonsense(lane: LaneSteps, rng: Rng) -> None:
    """Rows that a lane might launch, of streams that are in no such state."""
    shape = lane.shape
    num_rows = int(rng.integers(1, shape.max_rows + 1))
    frames = shape.max_chunks * shape.clock.chunk_frames
    rows = np.zeros((len(Field), num_rows), dtype=np.int32)
    rows[Field.SLOT] = rng.permutation(shape.num_slots)[:num_rows]
    rows[Field.START] = rng.integers(0, UNKNOWN_END // shape.clock.frame_samples, num_rows)
    rows[Field.FRAMES] = rng.integers(0, frames + 1, num_rows)
    rows[Field.TOTAL] = rng.choice([0, 5_000, UNKNOWN_END], num_rows)
    chunks = max(1, -(-int(rows[Field.FRAMES].max()) // shape.clock.chunk_frames))
    rows[Field.HEARD] = rng.integers(0, chunks * shape.clock.chunk_samples + 1, num_rows)
    rows[Field.FLOAT] = rng.integers(0, 2, num_rows)
    lane._area.flight(lane._area.launched).write(rows, table(lane, num_rows, rng), np.zeros((0, 2), int), 0)


def table(lane: LaneSteps, num_rows: int, rng: Rng) -> NDArray[np.int32]:
    pages = lane.shape.pages
    return rng.integers(0, pages.num_pages + 1, (num_rows, pages.ring_pages), dtype=np.int32)


@pytest.mark.parametrize("write", [anything, any_words, lawful_nonsense])
@pytest.mark.parametrize("make", [model_engine, null_engine])
def test_nonsense_in_a_flight_ends_its_lane_at_most(
    make: Callable[[AllocateRings], SpeechEngine], write: Callable[[LaneSteps, Rng], None]
) -> None:
    audio = {number: speech(JFK)[number * 4_000 : number * 4_000 + 30_000] for number in range(1, 4)}
    vocabulary: Tokenizer | Letters = random_model(2).tokenizer if make is model_engine else Letters()
    with lane_stack(make) as stack:
        true_lane = SpeechEngine(stack.lanes[1], vocabulary)
        alone = run(true_lane, audio)
        lying = stack.lanes[0]
        for seed in range(12):
            port, area = stack.ports[-1] if seed else stack.ports[0], lying._area
            for _ in range(3):
                write(lying, np.random.default_rng(seed))
                launched = area.launched = area.launched + 1
                stack.bell.ring()
                if area.flight(launched - 1).num_requests > 0:
                    break  # it waits for requests that never come
                wait_until(
                    lambda port=port, area=area, launched=launched: port.gone or area.done == launched,  # type: ignore[misc]
                    what="an answer, or an end",
                )
                if port.gone:
                    break
            assert stack.thread.is_alive()
            stack.server.remove(port)
            lying = stack.open_lane(stack.shares[0])
        again = run(true_lane, audio)
        assert {number: told(outputs) for number, outputs in again.items()} == {
            number: told(outputs) for number, outputs in alone.items()
        }
