"""The reference engine's own part: chunks, samples, batches, snapshots.  NeMo's part is tests/golden's."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, cast

import numpy as np
import pytest
import torch
from torch import Tensor

from common.entries import StreamId
from common.options import StreamOptions
from gpu_worker.engine.engine import EngineConfig, NativeEngine
from gpu_worker.engine.interface import (
    Engine,
    EngineFull,
    SnapshotMismatch,
    StreamFinished,
    StreamOutput,
    UnknownStream,
)
from gpu_worker.engine.nemo_engine import NemoEngine
from gpu_worker.engine.nemo_model import NemoMissingError, NemoModel, NemoState
from gpu_worker.engine.transcript import Token
from tests.oracle.models import JFK, speech, tiny

MELS, WIDTH = 3, 4


@dataclass
class FakeModel:
    """Stands for NeMo: a token is a checksum of the samples behind its frame's newest mel frames."""

    chunk_frames: int
    groups: list[tuple[int, bool]] = field(default_factory=list)
    device = torch.device("cpu")
    hop_samples = 160
    window_samples = 400
    factor = 8
    fingerprint = "fake"
    tokenizer = tiny().tokenizer

    def language(self, wanted: str | None) -> str | None:
        return wanted

    def signal_start(self, first: int) -> int:
        return max(0, first - 3) * 160

    def mels(self, samples: Tensor, first_sample: int, first: int, end: int) -> Tensor:
        assert first_sample <= self.signal_start(first)
        rows = []
        for mel in range(first, end):
            start = 160 * mel - 200 - first_sample
            window = samples[max(0, start) : start + 400]
            assert len(window) >= 160, "a mel frame's samples are not there"
            rows.append(torch.full((MELS,), float(window.abs().sum())))
        return torch.stack(rows, dim=1)

    def encode(self, states: Sequence[NemoState], mels: Sequence[Tensor], language: str | None) -> Tensor:
        is_first = states[0].caches is None
        assert all((state.caches is None) == is_first for state in states)
        assert len({mel.shape for mel in mels}) == 1
        self.groups.append((len(states), is_first))
        frames = []
        for state, mel in zip(states, mels, strict=True):
            past = state.mels_FM if state.mels_FM is not None else torch.zeros(MELS, 7)
            joined = torch.cat([past[:, -7:], mel], dim=1)
            joined = torch.cat([joined, torch.zeros(MELS, -joined.shape[1] % 8)], dim=1)
            state.caches = (torch.zeros(1, 1, 1, 1), torch.zeros(1, 1, 1, 1), torch.zeros(1))
            state.mels_FM = torch.cat([past, mel], dim=1)[:, -9:]
            frames.append(joined[0].view(-1, 8).sum(1, keepdim=True).expand(-1, WIDTH))
        return torch.stack(frames)

    def decode(self, state: NemoState, encoded_TD: Tensor, first_frame: int) -> list[Token]:
        sums = encoded_TD[:, 0].tolist()
        return [Token(1 + int(value * 7) % 500, first_frame + n, 0.5) for n, value in enumerate(sums)]


def make(chunk_frames: int = 2, num_slots: int = 4, batch_size: int = 32) -> tuple[NemoEngine, FakeModel]:
    model = FakeModel(chunk_frames)
    engine = NemoEngine(
        cast("NemoModel", model), num_slots=num_slots, batch_size=batch_size, turn_detection=False
    )
    return engine, model


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


@pytest.mark.parametrize("right", [0, 1, 6, 13])
@pytest.mark.parametrize(
    "num_samples", [0, 1, 160, 200, 1_279, 1_480, 1_640, 2_760, 17_920, 18_120, 40_003, 60_000]
)
def test_outputs_come_where_the_native_engine_has_them(right: int, num_samples: int) -> None:
    samples = speech(JFK)[:num_samples]
    native = NativeEngine(tiny(), EngineConfig(num_slots=1, context=(70, right), turn_detection=False))
    expected = [(out.samples_decoded, out.is_final) for out in transcribe(native, samples, [60_000])]
    engine, _ = make(right + 1)
    found = transcribe(engine, samples, [5_000])
    assert [(out.samples_decoded, out.is_final) for out in found] == expected


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


@pytest.mark.parametrize("cut", [100, 9_000, 30_000])
def test_a_snapshot_goes_on_exactly(cut: int) -> None:
    samples = speech(JFK)[:50_001]
    expected = essence(transcribe(make()[0], samples, [17_000]))
    first, second = make()[0], make()[0]
    stream = StreamId(1)
    first.open(stream, StreamOptions())
    first.feed(stream, samples[:cut])
    outputs = drain(first)
    second.open(stream, StreamOptions(), first.snapshot(stream))
    second.feed(stream, samples[second.samples_decoded(stream) :])
    second.finish(stream)
    assert essence(outputs + drain(second)) == expected


def test_memory_of_a_long_stream_is_bounded() -> None:
    engine, _ = make()
    stream = StreamId(1)
    engine.open(stream, StreamOptions())
    for _ in range(20):
        engine.feed(stream, speech(JFK)[:50_000])
        drain(engine)
    assert len(engine._streams.get(stream).recent) < 10_000


def test_refusals() -> None:
    engine, _ = make(num_slots=1)
    engine.open(StreamId(1), StreamOptions())
    with pytest.raises(EngineFull):
        engine.open(StreamId(2), StreamOptions())
    with pytest.raises(ValueError, match="is open"):
        engine.open(StreamId(1), StreamOptions())
    with pytest.raises(UnknownStream):
        engine.feed(StreamId(3), np.zeros(10, np.float32))
    with pytest.raises(ValueError, match="finite"):
        engine.feed(StreamId(1), np.full(10, np.nan, np.float32))
    engine.finish(StreamId(1))
    with pytest.raises(StreamFinished):
        engine.feed(StreamId(1), np.zeros(10, np.float32))
    engine.close(StreamId(1))
    with pytest.raises(SnapshotMismatch):
        engine.open(StreamId(2), StreamOptions(), b"no snapshot")
    engine.open(StreamId(2), StreamOptions())
    engine.check_integrity()


def test_without_nemo_the_error_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in [name for name in sys.modules if name.partition(".")[0] == "nemo"]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "nemo", None)
    with pytest.raises(NemoMissingError, match=r"pip install 'parakeet-server\[nemo\]'"):
        NemoModel(Path("any.nemo"), torch.device("cpu"), None, reset_at_end=True)
