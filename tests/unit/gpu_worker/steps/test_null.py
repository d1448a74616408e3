"""The null engine keeps the engine's contract: order, purity, snapshots, slots."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from common.entries import StreamId
from common.options import StreamOptions
from gpu_worker.engine.interface import (
    Engine,
    SnapshotMismatch,
    StreamOutput,
)
from gpu_worker.steps.null import NullEngine

A, B, C = StreamId(1), StreamId(2), StreamId(3)
CHUNK = 2560


def noise(samples: int, seed: int = 0) -> NDArray[np.float32]:
    return np.random.default_rng(seed).standard_normal(samples).astype(np.float32)


def run(engine: NullEngine) -> list[StreamOutput]:
    outputs: list[StreamOutput] = []
    while engine.has_work():
        outputs += engine.step()
        engine.check_integrity()
    return outputs


def alone(samples: NDArray[np.float32]) -> list[StreamOutput]:
    engine = NullEngine(1)
    engine.open(A, StreamOptions())
    engine.feed(A, samples)
    engine.finish(A)
    return run(engine)


def test_it_is_an_engine() -> None:
    engine: Engine = NullEngine(1)
    assert engine.wait_s() is None


@given(
    st.lists(st.tuples(st.sampled_from([A, B, C]), st.integers(0, 9000)), max_size=30),
    st.lists(st.booleans(), min_size=30, max_size=30),
)
def test_outputs_do_not_depend_on_cuts_or_mates(feeds: list[tuple[StreamId, int]], steps: list[bool]) -> None:
    engine = NullEngine(3)
    fed = dict.fromkeys((A, B, C), 0)
    audio = {stream: noise(300_000, stream) for stream in fed}
    outputs: list[StreamOutput] = []
    for stream in fed:
        engine.open(stream, StreamOptions())
    for (stream, count), step in zip(feeds, steps, strict=False):
        engine.feed(stream, audio[stream][fed[stream] : fed[stream] + count])
        fed[stream] += count
        engine.check_integrity()
        if step:
            outputs += engine.step()
    for stream in fed:
        engine.finish(stream)
    outputs += run(engine)
    for stream, count in fed.items():
        ours = [output for output in outputs if output.stream == stream]
        expected = alone(audio[stream][:count])
        assert [(o.text, o.token_ids, o.samples_decoded, o.is_final) for o in ours] == [
            (o.text, o.token_ids, o.samples_decoded, o.is_final) for o in expected
        ]
    assert engine.stats.open_streams == engine.stats.ready_streams == 0


def test_each_sample_counts() -> None:
    samples = noise(CHUNK * 3)
    text = alone(samples)[-1].text
    assert alone(samples[1:])[-1].text != text
    samples[CHUNK + 5] += np.float32(0.001)
    assert alone(samples)[-1].text != text


def test_samples_say_the_same_in_either_type_and_in_any_slot() -> None:
    pcm16 = np.random.default_rng(3).integers(-32_768, 32_768, 4 * CHUNK + 77).astype(np.int16)
    engine = NullEngine(1)
    texts = []
    # Small negative ones are bits that are no numbers to a stream of float32, which has the slot next.
    for samples in (np.full(20 * CHUNK, -1, np.int16), pcm16, pcm16.astype(np.float32) / np.float32(32_768)):
        engine.open(A, StreamOptions())
        engine.feed(A, samples)
        engine.finish(A)
        texts.append(run(engine)[-1].text)
    assert texts[0] != texts[1] == texts[2]


def test_samples_louder_than_full_scale_are_told_apart() -> None:
    texts = set()
    for height in (1.5, 2.0, 2.5):
        samples = np.zeros(CHUNK, np.float32)
        samples[100] = height
        texts.add(alone(samples)[-1].text)
    assert len(texts) == 3


def test_a_snapshot_goes_on_exactly() -> None:
    samples = noise(CHUNK * 7 + 99)
    engine = NullEngine(2)
    engine.open(A, StreamOptions())
    engine.feed(A, samples[: CHUNK * 3 + 1000])
    before = run(engine)
    snapshot = engine.snapshot(A).to_bytes()
    decoded = engine.samples_decoded(A)
    assert decoded == 3 * CHUNK
    other = NullEngine(1)
    other.open(B, StreamOptions(), snapshot)
    other.feed(B, samples[decoded:])
    other.finish(B)
    after = run(other)
    expected = alone(samples)
    assert [o.text for o in before + after] == [o.text for o in expected]
    with pytest.raises(SnapshotMismatch):
        NullEngine(1, chunk_ms=80).open(A, StreamOptions(), snapshot)
    with pytest.raises(SnapshotMismatch):
        NullEngine(1).open(A, StreamOptions(), b"something else")


def test_a_stream_that_is_behind_takes_several_chunks_in_a_step() -> None:
    engine = NullEngine(1)
    engine.open(A, StreamOptions())
    engine.feed(A, noise(CHUNK * 20))
    assert len(engine.step()) > 1
    assert engine.stats.ready_streams == 1
    assert len(run(engine)) < 20
