"""What every engine with pages of keys and values keeps, beside the contract of all engines."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pytest

from common.entries import StreamId
from common.options import StreamOptions
from gpu_worker.capacity import measure_capacity
from gpu_worker.engine.interface import OutOfPages, StreamOutput
from tests.contracts.engine_contract import EngineContract, Sizes, step_until_idle, told
from tests.oracle.models import JFK, speech


class PagedEngineContract(EngineContract):
    """Of a model that keeps keys and values in pages."""

    def shed(self, outputs: Sequence[StreamOutput]) -> list[int]:
        failed = [output for output in outputs if output.failed is not None]
        assert all(isinstance(output.failed, OutOfPages) for output in failed)
        return [int(output.stream) for output in failed]

    def pages_of_one(self) -> int:
        """Pages of one whole stream."""
        return self.make(Sizes()).steps.shape.pages.ring_pages

    def test_out_of_pages_sheds_the_newest_and_no_other_notices(self) -> None:
        samples = speech(JFK)[:120_000]
        expected = told(self.alone(samples, Sizes(), options=StreamOptions()))
        engine = self.make(Sizes(num_pages=self.pages_of_one() + 2))
        for number in (1, 2, 3):
            engine.open(StreamId(number), StreamOptions())
            engine.feed(StreamId(number), samples)
            engine.finish(StreamId(number))
        outputs = step_until_idle(engine)
        assert self.shed(outputs) == [3, 2]
        assert told(output for output in outputs if output.stream == 1) == expected
        assert engine.stats.open_streams == 0

    def test_out_of_pages_spares_newer_streams_that_have_none(self) -> None:
        engine = self.make(Sizes(num_slots=6, num_pages=self.pages_of_one() + 1))
        for number in (1, 2):
            engine.open(StreamId(number), StreamOptions())
            engine.feed(StreamId(number), speech(JFK)[:120_000])
        for number in (3, 4, 5):
            engine.open(StreamId(number), StreamOptions())
        engine.feed(StreamId(5), np.zeros(100, np.float32))
        assert self.shed(step_until_idle(engine)) == [2]
        assert engine.stats.open_streams == 4

    def test_out_of_pages_sheds_one_that_wants_its_first(self) -> None:
        engine = self.make(Sizes(num_slots=3, num_pages=self.pages_of_one()))
        engine.open(StreamId(1), StreamOptions())
        engine.feed(StreamId(1), speech(JFK)[:120_000])
        step_until_idle(engine)
        for number in (2, 3):
            engine.open(StreamId(number), StreamOptions())
        engine.feed(StreamId(2), speech(JFK)[:30_000])
        assert self.shed(step_until_idle(engine)) == [2]
        assert engine.stats.open_streams == 2

    def test_measuring_stops_where_the_pages_end(self) -> None:
        engine = self.make(Sizes(num_slots=6, num_pages=self.pages_of_one() + 1))
        capacity = measure_capacity(engine, 20.0)
        assert capacity is not None
        assert capacity.num_measured == 1
        engine.check_integrity()
        assert (engine.stats.open_streams, engine.stats.steps) == (0, 0)

    def test_a_snapshot_without_pages_for_it_is_refused(self) -> None:
        engine = self.make(Sizes(num_pages=self.pages_of_one() + 1))
        engine.open(StreamId(1), StreamOptions())
        engine.feed(StreamId(1), speech(JFK)[:120_000])
        step_until_idle(engine)
        with pytest.raises(OutOfPages):
            engine.open(StreamId(2), StreamOptions(), engine.snapshot(StreamId(1)).to_bytes())
        engine.check_integrity()
        assert engine.stats.open_streams == 1
