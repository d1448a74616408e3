"""Weight gradients do not see the mean of the inputs; outputs and input gradients are as ever."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from training.model.centred import CausalConv2d, CentredLinear, CentredPointwise1d, CentredPointwise2d

CASES = {
    "linear": (CentredLinear(6, 4), (5, 7, 6)),
    "pointwise1d": (CentredPointwise1d(6, 4), (5, 7, 6)),
    "pointwise2d": (CentredPointwise2d(6), (5, 6, 7, 8)),
    "first": (CausalConv2d(1, 4), (5, 1, 9, 8)),
}


def gradients(layer: nn.Module, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    x = x.clone().requires_grad_()
    layer.zero_grad()
    out = layer(x)
    out.backward(torch.arange(out.numel()).view(out.shape).sin())
    weight = layer.get_parameter("weight").grad
    assert weight is not None
    assert x.grad is not None
    return out.detach(), weight.clone(), x.grad


@pytest.mark.parametrize("name", CASES)
def test_a_constant_in_the_inputs_is_no_part_of_the_weight_gradient(name: str) -> None:
    layer, shape = CASES[name]
    torch.manual_seed(0)
    x = torch.randn(shape)
    layer.train()
    out, weight, inputs = gradients(layer, x)
    _, raised, _ = gradients(layer, x + 50.0)
    torch.testing.assert_close(raised, weight, atol=2e-3, rtol=1e-3)
    plain_out, plain_weight, plain_inputs = gradients(layer.eval(), x)
    torch.testing.assert_close(out, plain_out, atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(inputs, plain_inputs)
    _, plain_raised, _ = gradients(layer, x + 50.0)
    assert float((plain_raised - plain_weight).norm()) > 10 * float((raised - weight).norm())
