"""The three stages, step by step and without an engine, against the offline oracle."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
import torch
from torch import Tensor

from gpu_worker.engine.slots.clock import ChunkClock
from gpu_worker.engine.steps import UNKNOWN_END
from gpu_worker.model.loaded_model import LoadedModel
from gpu_worker.model.model import StepInputs, StreamingModel
from gpu_worker.model.state import HostCopy, KVPages, SlotState
from tests.oracle.models import GO_FORWARD, JFK, random_model, speech, tiny
from tests.oracle.offline import OfflineOracle

CONTEXTS = ((70, 13), (70, 6), (70, 1), (70, 0))
TOLERANCE = 1e-4


def steps(
    model: StreamingModel, samples: Tensor, chunks: int, slot: int, table: Tensor
) -> Iterator[tuple[StepInputs, int]]:
    """Every step of one recording, `chunks` chunks each, alone in its batch."""
    clock = ChunkClock(160, 200, 8, model.chunk_frames)
    total, width = clock.total_frames(len(samples)), chunks * model.chunk_frames
    for start in range(0, total, width):
        frames = min(width, total - start)
        is_last = start + frames == total
        index = 1280 * (start - 1) + 200 + torch.arange(1280 * width)
        inside = (index >= 0) & (index < len(samples))
        audio = torch.where(inside, samples[index.clamp(0, len(samples) - 1)], 0.0)
        yield (
            StepInputs(
                samples_BN=audio.unsqueeze(0),
                slots_B=torch.tensor([slot]),
                start_B=torch.tensor([start]),
                num_frames_B=torch.tensor([frames]),
                total_samples_B=torch.tensor([len(samples) if is_last else UNKNOWN_END]),
                block_table_BM=table,
                edges=start == 0 or is_last,
                full=frames == width,
            ),
            frames,
        )


def run(
    model: StreamingModel, state: SlotState, pages: KVPages, samples: Tensor, chunks: int, slot: int = 0
) -> tuple[Tensor, Tensor, list[int], list[int]]:
    """Subsampled frames, encoder frames, tokens and their frames of one recording."""
    ring = -(-(model.left_frames + chunks * model.chunk_frames) // pages.page_frames)
    table = torch.arange(pages.num_pages)[slot * ring : (slot + 1) * ring].flip(0).int().unsqueeze(0)
    subsampled, encoded = [], []
    tokens: list[int] = []
    frames: list[int] = []
    with torch.inference_mode():
        for step, count in steps(model, samples, chunks, slot, table):
            x = model.pre_encode(step, state)
            subsampled.append(x[0, :count].clone())
            y = model.encode(x, step, state, pages)
            encoded.append(y[0, :count].clone())
            emissions = model.decode(y, step, state)
            if emissions is not None:
                tokens += emissions.token_EB[:, 0].tolist()
                frames += (emissions.frame_EB[:, 0] + step.start_B).tolist()
    return torch.cat(subsampled), torch.cat(encoded), tokens, frames


def assert_equal_to_offline(
    loaded: LoadedModel,
    context: tuple[int, int],
    samples: Tensor,
    chunks: int,
    page_frames: int,
    **options: Any,
) -> list[int]:
    model = StreamingModel(loaded, context, **options)
    ring = -(-(model.left_frames + chunks * model.chunk_frames) // page_frames)
    state, pages = model.make_state(2), KVPages.for_model(model, 2 * ring, page_frames)
    expected = OfflineOracle(loaded, context, **options).run(samples)
    subsampled, encoded, tokens, frames = run(model, state, pages, samples, chunks, slot=1)
    # The subsampled values are of the order of 10 to 100, the encoder's of 1.
    torch.testing.assert_close(subsampled, expected.subsampled, atol=1e-3, rtol=1e-5)
    torch.testing.assert_close(encoded, expected.encoded, atol=TOLERANCE, rtol=0)
    assert tokens == expected.tokens
    assert frames == expected.frames
    return tokens


@pytest.mark.parametrize("context", CONTEXTS, ids=str)
@pytest.mark.parametrize("chunks", [1, 3])
def test_speech_streams_as_offline(context: tuple[int, int], chunks: int) -> None:
    samples = torch.tensor(speech(JFK)[:90_000])
    tokens = assert_equal_to_offline(tiny(), context, samples, chunks, page_frames=16)
    assert len(tokens) > 5


@pytest.mark.parametrize("context", CONTEXTS, ids=str)
@pytest.mark.parametrize(
    "num_samples", [1, 159, 160, 199, 200, 320, 1279, 1480, 1639, 6 * 1280 + 199, 6 * 1280 + 200, 13 * 1280]
)
def test_every_kind_of_remainder(context: tuple[int, int], num_samples: int) -> None:
    samples = torch.tensor(speech(GO_FORWARD)[17_000 : 17_000 + num_samples])
    assert_equal_to_offline(tiny(), context, samples, 1, page_frames=7)


@pytest.mark.parametrize(
    "changes",
    [
        {"use_bias": True},
        {"xscaling": True},
        {"pred_layers": 2},
        {"conv_kernel": 5},
        {"num_heads": 8},
        {"use_bias": True, "xscaling": True, "pred_layers": 2, "subsampling_channels": 4},
    ],
    ids=str,
)
def test_other_architectures(changes: dict[str, Any]) -> None:
    loaded = random_model(3, **changes)
    samples = torch.tensor(speech(JFK)[:60_000])
    tokens = assert_equal_to_offline(loaded, (70, 1), samples, 2, page_frames=10)
    assert tokens, "a model that says nothing tests no decoding"


def test_without_reset_the_predictor_runs_on() -> None:
    samples = torch.cat([torch.tensor(speech(GO_FORWARD)), torch.zeros(16_000)] * 2)
    with_reset = assert_equal_to_offline(tiny(), (70, 1), samples, 1, 16, reset_at_end=True)
    without = assert_equal_to_offline(tiny(), (70, 1), samples, 1, 16, reset_at_end=False)
    eou = tiny().config.eou_id
    assert eou in with_reset
    assert eou in without


def test_a_slot_taken_anew_holds_nothing() -> None:
    model = StreamingModel(tiny(), (70, 1))
    state, pages = model.make_state(1), KVPages.for_model(model, 5, 16)
    loud = torch.tensor(speech(JFK)[:50_000]) * 3
    samples = torch.tensor(speech(GO_FORWARD))
    _, fresh, *_ = run(model, model.make_state(1), KVPages.for_model(model, 5, 16), samples, 1)
    run(model, state, pages, loud, 1)
    state.reset(torch.tensor([0]))
    _, again, *_ = run(model, state, pages, samples, 1)
    assert torch.equal(fresh, again)


def test_state_moves_to_another_slot_exactly() -> None:
    model = StreamingModel(tiny(), (70, 1))
    state = model.make_state(3)
    with torch.inference_mode():
        for name, row in state.rows(0).items():
            if name != "prompt":  # of which tiny has one
                row.copy_(torch.arange(row.numel()).view(row.shape) + len(name))
    exported = HostCopy(state.rows(0)).buffers()
    state.load(2, exported)
    assert HostCopy(state.rows(2)).buffers() == exported
    assert HostCopy(state.rows(1)).buffers() == HostCopy(model.make_state(3).rows(1)).buffers()


def test_state_of_another_model_is_refused() -> None:
    state = StreamingModel(tiny(), (70, 1)).make_state(1)
    other = StreamingModel(random_model(), (70, 1)).make_state(1)
    with pytest.raises(ValueError, match="does not fit"):
        state.load(0, HostCopy(other.rows(0)).buffers())


@pytest.mark.parametrize(("name", "value"), [("prompt", -1), ("prompt", 1), ("node", -1)])
def test_state_that_points_beyond_a_table_is_refused(name: str, value: int) -> None:
    state = StreamingModel(tiny(), (70, 1)).make_state(2)
    before = HostCopy(state.rows(1)).buffers()
    with torch.inference_mode():
        state.rows(0)[name].fill_(value)
    with pytest.raises(ValueError, match="does not fit"):
        state.load(1, HostCopy(state.rows(0)).buffers())
    assert HostCopy(state.rows(1)).buffers() == before


def test_bfloat16_runs() -> None:
    """Not a test of accuracy: every stage takes the type, and the text is close to right."""
    base = tiny()
    weights = {
        name: tensor if name.startswith("preprocessor.") else tensor.bfloat16()
        for name, tensor in base.weights.items()
    }
    loaded = LoadedModel(base.config, weights, base.tokenizer, base.source, None, torch.bfloat16, base.device)
    model = StreamingModel(loaded, (70, 1))
    *_, tokens, _ = run(
        model, model.make_state(1), KVPages.for_model(model, 5, 16), torch.tensor(speech(GO_FORWARD)), 1
    )
    assert "forward" in base.tokenizer.decode(tokens)
