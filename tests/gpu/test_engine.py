"""The engine on CUDA against the float32 engine on CPU, on real recordings with the bundled model."""

from __future__ import annotations

import json
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from functools import cache

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

pytestmark = pytest.mark.gpu

if not torch.cuda.is_available():
    pytest.skip("no GPU", allow_module_level=True)

from common.entries import StreamId
from common.options import StreamOptions
from gpu_worker.engine.config import BatchSizes, EngineConfig
from gpu_worker.engine.engine import SpeechEngine
from gpu_worker.engine.interface import StreamOutput
from gpu_worker.model.loaded_model import LoadedModel
from gpu_worker.model.loading.checkpoint import load_model
from gpu_worker.steps.factory import make_model_engine
from tests.contracts.engine_contract import Sizes, step_until_idle
from tests.contracts.paged_contract import PagedEngineContract
from tests.contracts.phrase_contract import PhraseContract
from tests.oracle.models import ALL_RECORDINGS, RECORDINGS, speech, tiny

CONTEXTS = [(70, 13), (70, 6), (70, 1), (70, 0)]
CONFIG = EngineConfig(num_slots=24, page_frames=8, batch_sizes=BatchSizes(7, 16, 5), turn_detection=False)


class TestGraphs(PagedEngineContract, PhraseContract):
    """The engine's contract over captured graphs, in the type in which texts may be compared."""

    def make(self, sizes: Sizes) -> SpeechEngine:
        batch = BatchSizes(sizes.rows, sizes.rows, sizes.rows)
        config = replace(
            CONFIG,
            num_slots=sizes.num_slots,
            context=(70, 1),
            num_pages=sizes.num_pages,
            batch_sizes=batch,
            turn_detection=sizes.turns,
        )
        return make_model_engine(on_cuda(torch.float32), config)


def test_audio_brings_a_stream_back_on_a_gpu() -> None:
    """A slot that has heard something else goes on as the stream's own did, by its audio and 15 KB."""
    config = replace(CONFIG, num_slots=2, context=(70, 1), turn_detection=True, audio_snapshots=True)
    samples, stream = np.concatenate([speech(name) for name in 4 * ALL_RECORDINGS]), StreamId(1)
    first, second = (make_model_engine(on_cuda(torch.float32), config) for _ in range(2))
    cut = len(samples) - 200_000
    first.open(stream, StreamOptions(words=True))
    first.feed(stream, samples[:cut])
    before = step_until_idle(first)
    taken = first.snapshot(stream)
    data = taken.to_bytes()
    assert 0 < taken.first_sample < taken.samples_decoded
    assert len(data) < 50_000
    second.open(StreamId(2), StreamOptions())
    second.feed(StreamId(2), samples[::-1][:300_000].copy())
    step_until_idle(second)
    second.close(StreamId(2))
    second.open(stream, StreamOptions(words=True), data)
    second.feed(stream, samples[taken.first_sample : taken.samples_decoded])
    assert told(step_until_idle(second)) == []
    rest = []
    for engine in (first, second):
        engine.feed(stream, samples[taken.samples_decoded if engine is second else cut :])
        engine.finish(stream)
        rest.append(told(step_until_idle(engine)))
    assert rest[0] == rest[1]
    assert told(before)[-1].text in rest[0][-1].text


@cache
def on_cuda(dtype: torch.dtype) -> LoadedModel:
    return load_model(None, size="tiny", dtype=dtype, device="cuda")


@cache
def cuda_engine(context: tuple[int, int], dtype: torch.dtype, turns: bool = False) -> SpeechEngine:
    return make_model_engine(on_cuda(dtype), replace(CONFIG, context=context, turn_detection=turns))


def run(
    engine: SpeechEngine, audio: dict[int, NDArray[np.float32]], seed: int = 0
) -> dict[int, list[StreamOutput]]:
    """Feed recordings in random pieces, all at once, and collect each one's outputs."""
    rng = np.random.default_rng(seed)
    outputs: dict[int, list[StreamOutput]] = {number: [] for number in audio}
    position = dict.fromkeys(audio, 0)
    for number in audio:
        engine.open(StreamId(number), StreamOptions())
    while position or engine.has_work():
        for number in list(position):
            size = int(rng.choice([1, 160, 2560, 9000, 40_000]))
            first = position[number]
            engine.feed(StreamId(number), audio[number][first : first + size])
            position[number] += size
            if position[number] >= len(audio[number]):
                engine.finish(StreamId(number))
                del position[number]
        for output in engine.step():
            outputs[output.stream].append(output)
        engine.check_integrity()
    return outputs


def told(outputs: list[StreamOutput]) -> list[StreamOutput]:
    """What clients see, but for scores, which rounding moves."""
    return [replace(output, confidence_scores=()) for output in outputs if output.changed]


@pytest.mark.parametrize("turns", [False, True])
@pytest.mark.parametrize("context", CONTEXTS, ids=str)
def test_float32_equals_cpu(context: tuple[int, int], turns: bool) -> None:
    audio = {number: speech(name) for number, name in enumerate(ALL_RECORDINGS)}
    config = replace(CONFIG, context=context, page_frames=0, turn_detection=turns)
    expected = run(make_model_engine(tiny(), config), audio)
    found = run(cuda_engine(context, torch.float32, turns), audio)
    for number in audio:
        assert told(found[number]) == told(expected[number])
        assert found[number][-1].text
        scores = [
            [score for output in outputs[number] for score in output.confidence_scores]
            for outputs in (found, expected)
        ]
        assert scores[0] == pytest.approx(scores[1], rel=0.02, abs=1e-4)


def test_transcripts_do_not_depend_on_batch_mates() -> None:
    engine = cuda_engine((70, 1), torch.float32)
    alone = {
        number: run(engine, {number: speech(name)})[number] for number, name in enumerate(ALL_RECORDINGS)
    }
    for seed in range(3):
        audio = {number: speech(ALL_RECORDINGS[number % 4]) for number in range(20)}
        together = run(engine, audio, seed)
        for number, outputs in together.items():
            expected = [replace(output, stream=StreamId(number)) for output in told(alone[number % 4])]
            assert told(outputs) == expected


def test_snapshot_goes_on_where_it_was_taken() -> None:
    engine = cuda_engine((70, 1), torch.float32, True)
    samples = speech(ALL_RECORDINGS[1])
    whole = run(engine, {1: samples})[1]
    engine.open(StreamId(1), StreamOptions())
    engine.feed(StreamId(1), samples[:90_000])
    outputs = [output for _ in range(20) for output in engine.step()]
    position = engine.samples_decoded(StreamId(1))
    snapshot = engine.snapshot(StreamId(1)).to_bytes()
    engine.close(StreamId(1))
    engine.open(StreamId(1), StreamOptions(), snapshot)
    assert engine.samples_decoded(StreamId(1)) == position
    engine.feed(StreamId(1), samples[position:])
    engine.finish(StreamId(1))
    while engine.has_work():
        outputs += engine.step()
    assert told(outputs) == told(whole)


@pytest.mark.skipif(torch.cuda.device_count() < 2, reason="no GPU beside the first")
def test_another_device_from_another_thread() -> None:
    loaded = load_model(None, size="tiny", dtype=torch.float32, device="cuda:1")
    engine = make_model_engine(loaded, replace(CONFIG, context=(70, 1)))
    audio = {number: speech(name) for number, name in enumerate(ALL_RECORDINGS)}
    expected = run(cuda_engine((70, 1), torch.float32), audio)
    # A new thread's current device is the first one, as it is for a worker's engine thread.
    with ThreadPoolExecutor(1) as pool:
        found = pool.submit(run, engine, audio).result()
    for number in audio:
        assert told(found[number]) == told(expected[number])


def _errors(words: list[str], truth: list[str]) -> int:
    """Edit distance in words."""
    row = list(range(len(truth) + 1))
    for count, word in enumerate(words, 1):
        before, row[0] = row[0], count
        for index, true in enumerate(truth, 1):
            before, row[index] = row[index], min(row[index] + 1, row[index - 1] + 1, before + (word != true))
    return row[-1]


def test_bfloat16_word_error_rate_is_within_two_percent() -> None:
    clips = {clip["file"]: clip["text"] for clip in json.loads((RECORDINGS / "clips.json").read_text())}
    rng = np.random.default_rng(5)
    audio: dict[int, NDArray[np.float32]] = {}
    truth: dict[int, list[str]] = {}
    names = [name for name in ALL_RECORDINGS if name in clips]
    # The same sentences under other phases of the frames, loudness and noise count as other speech.
    for number in range(120):
        name = names[number % len(names)]
        samples = np.pad(speech(name), (int(rng.integers(0, 2560)), 0)) * np.float32(rng.uniform(0.3, 1.0))
        audio[number] = (samples + 0.002 * rng.standard_normal(len(samples))).astype(np.float32)
        kept = "".join(letter for letter in clips[name].lower() if letter.isalpha() or letter in " '")
        truth[number] = kept.split()
    errors = []
    for dtype in (torch.float32, torch.bfloat16):
        engine = cuda_engine((70, 1), dtype)
        wrong = 0
        for first in range(0, len(audio), 20):
            part = {number: audio[number] for number in range(first, min(first + 20, len(audio)))}
            for number, outputs in run(engine, part).items():
                wrong += _errors(outputs[-1].text.split(), truth[number])
        errors.append(wrong)
    total = sum(len(words) for words in truth.values())
    print(f"word errors of {total}: float32 {errors[0]}, bfloat16 {errors[1]}")
    assert abs(errors[1] - errors[0]) <= 0.02 * max(errors[0], 1) + 1
