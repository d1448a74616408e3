"""The reference engine's own part: chunks, samples, batches, snapshots.  NeMo's part is tests/golden's."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any, cast

import numpy as np
import pytest
import torch

from common.entries import StreamId
from common.options import StreamOptions
from gpu_worker.engine.engine import SpeechEngine
from gpu_worker.engine.interface import (
    Engine,
    StreamOutput,
)
from gpu_worker.steps.nemo import NemoSteps
from gpu_worker.steps.nemo_model import NemoMissingError, NemoModel
from tests.fake_nemo import FakeNemo
from tests.oracle.models import JFK, speech


def make(chunk_frames: int = 2, num_slots: int = 4) -> tuple[SpeechEngine, FakeNemo]:
    model = FakeNemo(chunk_frames)
    steps = NemoSteps(cast("NemoModel", model), num_slots=num_slots, turn_detection=False)
    return SpeechEngine(steps, model.tokenizer, prompt_of=steps.prompt_of), model


def drain(engine: Engine) -> list[StreamOutput]:
    outputs: list[StreamOutput] = []
    while engine.has_work():
        outputs += engine.step()
        engine.check_integrity()
    return outputs


def transcribe(engine: Engine, samples: np.ndarray[Any, np.dtype[np.float32]], sizes: Sequence[int]) -> Any:
    """Outputs of one stream fed in messages of the given sizes, over and over."""
    stream, outputs, position, turn = StreamId(1), list[StreamOutput](), 0, 0
    engine.open(stream, StreamOptions())
    while position < len(samples):
        size = sizes[turn % len(sizes)]
        engine.feed(stream, samples[position : position + size])
        position, turn = position + size, turn + 1
        outputs += drain(engine)
    engine.finish(stream)
    return outputs + drain(engine)


def essence(outputs: Sequence[StreamOutput]) -> list[tuple[int, tuple[int, ...], tuple[int, ...], bool]]:
    return [(out.samples_decoded, out.token_ids, out.token_frames, out.is_final) for out in outputs]


@pytest.mark.parametrize("sizes", [[1_000_000], [160], [7_001, 13, 2_560]])
def test_message_sizes_change_nothing(sizes: list[int]) -> None:
    samples = speech(JFK)[:50_001]
    whole = essence(transcribe(make()[0], samples, [17_000]))
    assert sum(len(tokens) for _, tokens, _, _ in whole) == 40
    assert essence(transcribe(make()[0], samples, sizes)) == whole


def test_streams_of_one_kind_share_a_batch_and_are_as_alone() -> None:
    audio = [speech(JFK)[first : first + 30_000] for first in (0, 20_000, 50_000)]
    alone = [essence(transcribe(make()[0], samples, [30_000])) for samples in audio]
    engine, model = make()
    for number, samples in enumerate(audio):
        engine.open(StreamId(number), StreamOptions())
        engine.feed(StreamId(number), samples)
        engine.finish(StreamId(number))
    outputs = drain(engine)
    for number, expected in enumerate(alone):
        assert essence([out for out in outputs if out.stream == number]) == expected
    assert model.groups[:2] == [(3, True), (3, False)]
    assert engine.stats.open_streams == 0


def test_memory_of_a_long_stream_is_bounded() -> None:
    engine, _ = make()
    stream = StreamId(1)
    engine.open(stream, StreamOptions())
    sizes = set()
    for _ in range(20):
        engine.feed(stream, speech(JFK)[:50_000])
        drain(engine)
        sizes.add(len(engine.snapshot(stream).to_bytes()) // 5_000)
    assert max(sizes) <= min(sizes) + 1


def test_without_nemo_the_error_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in [name for name in sys.modules if name.partition(".")[0] == "nemo"]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "nemo", None)
    with pytest.raises(NemoMissingError, match=r"pip install 'parakeet-server\[nemo\]'"):
        NemoModel(Path("any.nemo"), torch.device("cpu"), None, reset_at_end=True)
