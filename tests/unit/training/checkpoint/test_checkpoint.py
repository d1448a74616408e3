"""A session's end and the next one's begin: what is kept, how exactly, and in how many bytes."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from torch import nn

from tests.unit.training.optimiser.test_optimiser import Small, full_size_model
from training.checkpoint.checkpoint import (
    MANIFEST_NAME,
    MAX_BYTES,
    MAX_PART_BYTES,
    Progress,
    TrainingCheckpointError,
    flat_weights,
    load_checkpoint,
    read_progress,
    save_checkpoint,
)
from training.checkpoint.quantised import quantise, restore
from training.optimiser.flat import FlatParameters
from training.optimiser.optimiser import Optimiser, Rates

PROGRESS = Progress(num_steps=7, next_row=1_234, num_sessions=2)


def trained(model: nn.Module, seed: int = 0) -> Optimiser:
    """An optimiser after some steps of noise."""
    flat = FlatParameters(model)
    optimiser = Optimiser(flat, Rates())
    generator = torch.Generator().manual_seed(seed)
    for _ in range(PROGRESS.num_steps):
        flat.gradients_N.copy_(torch.randn(flat.gradients_N.shape, generator=generator))
        optimiser.step(1.0)
    return optimiser


@pytest.mark.parametrize("bits", [4, 8])
@pytest.mark.parametrize("size", [1, 63, 64, 65, 1_000])
@pytest.mark.parametrize("centred", [True, False])
def test_quantised_within_half_a_step(bits: int, size: int, centred: bool) -> None:
    torch.manual_seed(size)
    x = torch.randn(size) * torch.logspace(-3, 3, size) + (0.0 if centred else 5.0)
    x[::7] = 0.0
    back = restore(quantise(x, bits, 64, centred=centred))
    assert back.shape == x.shape
    blocks = torch.nn.functional.pad(x, (0, -size % 64)).view(-1, 64)
    width = 2 * blocks.abs().amax(1) if centred else blocks.amax(1) - blocks.amin(1)
    bound = (width / (2**bits - 2) / 2).repeat_interleave(64)[:size]
    assert ((back - x).abs() <= bound * 1.001 + 1e-6).all()
    if centred:
        assert not back[::7].any()


def test_a_session_goes_on_where_the_last_one_ended(tmp_path: Path) -> None:
    first = trained(Small())
    base = flat_weights(first.parameters, {})
    save_checkpoint(tmp_path, first, PROGRESS, base)
    assert read_progress(tmp_path) == PROGRESS
    second = Optimiser(FlatParameters(Small()), Rates())
    assert load_checkpoint(tmp_path, second, base) == PROGRESS
    assert second.num_steps == PROGRESS.num_steps
    torch.testing.assert_close(second.average_N, first.average_N, atol=5e-3, rtol=0)
    assert torch.equal(second.parameters.values_N, second.average_N)
    torch.testing.assert_close(second.momentum_N, first.momentum_N, atol=0.1, rtol=0)
    # Only AdamW has a second moment, and its root is what an update is divided by.
    adam = second._share_N > 0
    torch.testing.assert_close(second.variance_N[adam], first.variance_N[adam], atol=0, rtol=0.15)
    # The next step of both is nearly the same.
    moves, start = [], first.average_N.clone()
    for optimiser in (first, second):
        optimiser.parameters.values_N.copy_(start)
        optimiser.parameters.gradients_N.fill_(0.3)
        optimiser.step(1.0)
        moves.append(optimiser.parameters.values_N - start)
    assert float((moves[0] - moves[1]).norm() / moves[0].norm()) < 0.25


def test_weights_near_their_base_are_nearly_exact(tmp_path: Path) -> None:
    optimiser = trained(Small())
    base = optimiser.average_N + 1e-3 * torch.randn_like(optimiser.average_N)
    save_checkpoint(tmp_path, optimiser, PROGRESS, base)
    second = Optimiser(FlatParameters(Small()), Rates())
    load_checkpoint(tmp_path, second, base)
    torch.testing.assert_close(second.average_N, optimiser.average_N, atol=2e-5, rtol=0)


def test_a_full_model_stays_within_the_limits(tmp_path: Path) -> None:
    """Worst case of a code's length: weights, momentum and logarithms all look like noise."""
    optimiser = Optimiser(FlatParameters(full_size_model()), Rates())
    optimiser.average_N.normal_()
    optimiser.momentum_N.normal_()
    optimiser.variance_N.log_normal_(-10, 3)
    size = save_checkpoint(tmp_path, optimiser, PROGRESS, flat_weights(optimiser.parameters, {}))
    assert size == sum(path.stat().st_size for path in tmp_path.glob("state-*"))
    assert sum(path.stat().st_size for path in tmp_path.iterdir()) <= MAX_BYTES
    assert max(path.stat().st_size for path in tmp_path.iterdir()) <= MAX_PART_BYTES < 16_000_000
    assert len(list(tmp_path.glob("state-*"))) == 2


def test_a_new_checkpoint_replaces_the_old_one(tmp_path: Path) -> None:
    optimiser = trained(Small())
    base = flat_weights(optimiser.parameters, {})
    save_checkpoint(tmp_path, optimiser, PROGRESS, base)
    later = Progress(8, 2_000, 3)
    save_checkpoint(tmp_path, optimiser, later, base)
    assert sorted(path.name for path in tmp_path.iterdir()) == [MANIFEST_NAME, "state-0000008.0"]
    assert read_progress(tmp_path) == later


def test_damage_and_strangers_are_told(tmp_path: Path) -> None:
    optimiser = trained(Small())
    base = flat_weights(optimiser.parameters, {})
    save_checkpoint(tmp_path, optimiser, PROGRESS, base)
    with pytest.raises(TrainingCheckpointError, match="other weights"):
        load_checkpoint(tmp_path, optimiser, base + 1.0)
    with pytest.raises(TrainingCheckpointError, match="another shape"):
        load_checkpoint(tmp_path, trained(nn.Linear(3, 2)), torch.zeros(8))
    part = tmp_path / "state-0000007.0"
    data = bytearray(part.read_bytes())
    data[len(data) // 2] ^= 1
    part.write_bytes(data)
    with pytest.raises(TrainingCheckpointError, match="damaged"):
        load_checkpoint(tmp_path, optimiser, base)
    part.unlink()
    with pytest.raises(TrainingCheckpointError, match="cannot be read"):
        load_checkpoint(tmp_path, optimiser, base)
    (tmp_path / MANIFEST_NAME).write_text(json.dumps(None)[:2])
    with pytest.raises(TrainingCheckpointError, match="cannot be read"):
        read_progress(tmp_path)
