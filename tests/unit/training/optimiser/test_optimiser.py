"""Which parameters learn how, and that updates keep what the recipe promises."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from tests.oracle.models import tiny
from training.model.transducer import TrainingModel
from training.optimiser.flat import FlatParameters
from training.optimiser.muon import orthogonalised
from training.optimiser.optimiser import (
    SUBSAMPLING_OUT,
    Optimiser,
    Rates,
    by_muon,
    decays,
    limit_gradients,
)
from training.optimiser.schedule import Schedule


def full_size_model() -> TrainingModel:
    loaded = tiny()
    weights = loaded.weights
    return TrainingModel(
        loaded.config,
        weights["preprocessor.featurizer.fb"],
        weights["preprocessor.featurizer.window"],
        num_phonemes=92,
    )


@pytest.mark.parametrize("shape", [(3, 24, 64), (2, 64, 24), (1, 32, 32)])
def test_orthogonalised_keeps_directions_and_levels_sizes(shape: tuple[int, int, int]) -> None:
    torch.manual_seed(0)
    left, _, right = torch.linalg.svd(torch.randn(shape), full_matrices=False)
    matrices = left @ torch.diag(torch.logspace(1, -0.5, min(shape[1:]))) @ right
    before, after = torch.linalg.svd(matrices), torch.linalg.svd(orthogonalised(matrices))
    assert float(before.S[:, 0].mean()) > 30 * float(before.S[:, -1].mean())
    assert 0.5 < float(after.S.min()) < float(after.S.max()) < 1.4
    between = left.mT @ orthogonalised(matrices) @ right.mT
    off_diagonal = between - torch.diag_embed(torch.diagonal(between, dim1=1, dim2=2))
    assert float(off_diagonal.abs().max()) < 1e-3


def test_every_parameter_of_the_model_has_its_rule() -> None:
    flat = FlatParameters(full_size_model())
    muon = [name for name, shape in flat.shapes.items() if by_muon(name, shape)]
    kinds = {name if name.startswith("joint") else name.split(".", 3)[3] for name in muon}
    assert kinds == {
        "feed_forward1.linear1.weight", "feed_forward1.linear2.weight", "feed_forward2.linear1.weight",
        "feed_forward2.linear2.weight", "self_attn.linear_q.weight", "self_attn.linear_k.weight",
        "self_attn.linear_v.weight", "self_attn.linear_out.weight", "self_attn.linear_pos.weight",
        "conv.pointwise_conv1.weight", "conv.pointwise_conv2.weight", "joint.enc.weight",
    }  # fmt: skip
    shares = {name: Rates().share(name, shape) for name, shape in flat.shapes.items()}
    assert shares["encoder.pre_encode.conv.0.weight"] == shares[SUBSAMPLING_OUT] == 0.1
    assert shares["encoder.layers.3.norm_out.weight"] == 0.2
    assert shares["encoder.layers.3.conv.depthwise_conv.weight"] == 1.0
    assert shares["decoder.prediction.embed.weight"] == shares["joint.joint_net.2.bias"] == 1.0
    assert all(shares[name] == 0.0 for name in muon)
    decayed = {name for name, shape in flat.shapes.items() if decays(name, shape)}
    assert "decoder.prediction.dec_rnn.lstm.weight_ih_l0" in decayed
    assert not {"decoder.prediction.embed.weight", SUBSAMPLING_OUT, "joint.enc.weight"} & decayed


def test_flat_buffers_are_the_parameters() -> None:
    model = nn.Sequential(nn.Linear(3, 2), nn.Linear(2, 1))
    flat = FlatParameters(model)
    flat.values_N.fill_(0.5)
    model(torch.ones(4, 3)).sum().backward()
    assert torch.equal(model.get_parameter("0.weight"), torch.full((2, 3), 0.5))
    assert torch.equal(flat.view(flat.gradients_N, "0.weight"), torch.full((2, 3), 2.0))
    assert torch.equal(flat.view(flat.gradients_N, "1.bias"), torch.full((1,), 4.0))


class Small(nn.Module):
    """Two parameters under the names of a real model: one is Muon's, one AdamW's."""

    def __init__(self) -> None:
        super().__init__()
        self.joint = nn.Module()
        self.joint.enc = nn.Linear(4, 3, bias=False)
        self.encoder = nn.Module()
        self.encoder.pre_encode = nn.Module()
        self.encoder.pre_encode.out = nn.Linear(5, 2, bias=False)


def small_optimiser(rates: Rates) -> tuple[FlatParameters, Optimiser]:
    torch.manual_seed(0)
    flat = FlatParameters(Small())
    return flat, Optimiser(flat, rates)


def test_adam_equals_torch() -> None:
    flat, optimiser = small_optimiser(Rates(adam=0.01, muon=0.0, decay=0.1, subsampling=1.0))
    parameter = nn.Parameter(flat.view(flat.values_N, SUBSAMPLING_OUT).clone())
    reference = torch.optim.AdamW([parameter], lr=0.01, betas=(0.9, 0.98), eps=1e-8, weight_decay=0.0)
    for step in range(5):
        gradient = torch.randn(2, 5, generator=torch.Generator().manual_seed(step))
        parameter.grad = gradient.clone()
        reference.step()
        flat.view(flat.gradients_N, SUBSAMPLING_OUT).copy_(gradient)
        optimiser.step(1.0)
        torch.testing.assert_close(flat.view(flat.values_N, SUBSAMPLING_OUT), parameter.data)
    assert not flat.gradients_N.any()


def test_updates_of_the_subsampling_stay_orthogonal_to_its_mean_input() -> None:
    flat, optimiser = small_optimiser(Rates())
    direction = torch.tensor([3.0, 1.0, 2.0, 1.0, 4.0])
    optimiser.keep_orthogonal_to(direction)
    before = flat.view(flat.values_N, SUBSAMPLING_OUT).clone()
    flat.gradients_N.copy_(torch.randn_like(flat.gradients_N))
    optimiser.step(1.0)
    change = flat.view(flat.values_N, SUBSAMPLING_OUT) - before
    assert float(change.norm()) > 1e-5
    assert float((change @ direction).abs().max()) < 1e-6 * float(direction.norm())


def test_muon_moves_all_directions_alike() -> None:
    flat, optimiser = small_optimiser(Rates(muon=0.1))
    before = flat.view(flat.values_N, "joint.enc.weight").clone()
    gradient = torch.zeros(3, 4)
    gradient[0, 0], gradient[1, 1], gradient[2, 2] = 100.0, 10.0, 1.0
    flat.view(flat.gradients_N, "joint.enc.weight").copy_(gradient)
    optimiser.step(1.0)
    change = flat.view(flat.values_N, "joint.enc.weight") - before * (1.0 - 0.1 * 0.01)
    sizes = torch.tensor([float(change[k, k]) for k in range(3)]) / (-0.1 * 0.2 * 4**0.5)
    assert ((sizes > 0.4) & (sizes < 1.4)).all()


def test_the_average_follows() -> None:
    flat, optimiser = small_optimiser(Rates(adam=0.0, muon=0.0))
    flat.values_N += 1.0
    distance = float((optimiser.average_N - flat.values_N).abs().max())
    for _ in range(50):
        optimiser.step(1.0)
    assert float((optimiser.average_N - flat.values_N).abs().max()) < 0.01 * distance


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_gradients_that_are_not_finite_are_cleared(bad: float) -> None:
    gradients = torch.tensor([3.0, 4.0])
    assert float(limit_gradients(gradients, torch.tensor(True), max_norm=1.0)) == 5.0
    torch.testing.assert_close(gradients, torch.tensor([0.6, 0.8]))
    limit_gradients(gradients, torch.tensor(False))
    assert not gradients.any()
    gradients = torch.tensor([bad, 1.0])
    limit_gradients(gradients, torch.tensor(True))
    assert torch.equal(gradients, torch.zeros(2))


def test_schedule() -> None:
    schedule = Schedule()
    shares: Tensor = torch.tensor([schedule.rate_share(step / 1_000) for step in range(1_001)])
    assert float(shares.argmax()) == 80
    assert (shares[1:81] > shares[:80]).all()
    assert (shares[81:] < shares[80:-1]).all()
    torch.testing.assert_close(shares[1_000], torch.tensor(0.005))
    assert schedule.only_short(0.079)
    assert not schedule.only_short(0.08)
    assert schedule.loss_weights(0).phonemes == 1.0
    assert schedule.loss_weights(0.5).transducer == 1.0
    assert schedule.augmentation(0) == 0.1
    assert schedule.augmentation(0.5) == 1.0
    assert not Schedule(warm_up=0.03, short=0.0).only_short(0)
