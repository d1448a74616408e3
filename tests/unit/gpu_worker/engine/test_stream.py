"""The queue of samples and what a stream could decode."""

from __future__ import annotations

import numpy as np

from common.entries import StreamId
from common.options import StreamOptions
from gpu_worker.engine.clock import ChunkClock
from gpu_worker.engine.scheduler import Demand
from gpu_worker.engine.stream import SampleQueue, Stream
from gpu_worker.engine.transcript import Transcript
from tests.oracle.models import tiny


def make_stream() -> Stream:
    transcript = Transcript(tiny().tokenizer, 0.08, with_words=False)
    return Stream(StreamId(7), 0, 1, StreamOptions(), ChunkClock(160, 200, 8, 2), transcript)


def test_the_queue_gives_back_what_it_took_in_any_cuts() -> None:
    rng = np.random.default_rng(0)
    samples = rng.standard_normal(5_000).astype(np.float32)
    queue, taken = SampleQueue(), []
    position = 0
    while position < len(samples) or len(queue):
        if position < len(samples) and rng.random() < 0.5:
            size = int(rng.integers(0, 700))
            queue.append(samples[position : position + size])
            position += size
        target = np.full(int(rng.integers(0, 900)), 9.0, dtype=np.float32)
        waiting = len(queue)
        count = queue.take_into(target)
        assert count == min(waiting, len(target))
        assert (target[count:] == 9.0).all(), "nothing past what was taken is written"
        assert len(queue) == waiting - count
        taken.append(target[:count])
    assert np.array_equal(np.concatenate(taken), samples)


def is_ready(stream: Stream) -> bool:
    """Asked anew each time, where a type checker would remember the first answer."""
    return stream.is_ready


def test_demand_before_and_after_the_end_is_known() -> None:
    stream = make_stream()
    assert not is_ready(stream)
    stream.queue.append(np.zeros(1479, dtype=np.float32))
    assert stream.demand() == Demand(0, 0, ends=False)
    stream.queue.append(np.zeros(1, dtype=np.float32))
    assert stream.demand() == Demand(1, 0, ends=False)
    assert is_ready(stream)
    stream.total_samples = stream.samples_fed
    assert stream.demand() == Demand(1, 0, ends=True), "1480 samples are 9 mel frames, 2 encoder frames"
    stream.frames_done, stream.samples_taken = 2, 1480
    assert stream.samples_decoded == 1480
    stream.ended = True
    assert not is_ready(stream)


def test_an_empty_stream_is_ready_for_its_end() -> None:
    stream = make_stream()
    stream.total_samples = 0
    assert is_ready(stream)
    assert stream.demand() == Demand(0, 0, ends=True)
