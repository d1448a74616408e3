"""All parameters of a model in one tensor and all gradients in another.

An update is then a few launches for any number of tensors, and the exchange between GPUs is one call.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn


class FlatParameters:
    """Makes a model's parameters, and their gradients, views of two flat tensors of N numbers.

    `values_N` and `gradients_N` are float32. `slices` has the position of each named parameter.
    """

    def __init__(self, model: nn.Module) -> None:
        named = dict(model.named_parameters())
        self.shapes = {name: parameter.shape for name, parameter in named.items()}
        self.slices: dict[str, slice] = {}
        end = 0
        for name, parameter in named.items():
            self.slices[name] = slice(end, end + parameter.numel())
            end += parameter.numel()
        device = next(iter(named.values())).device
        self.values_N = torch.empty(end, device=device)
        self.gradients_N = torch.zeros(end, device=device)
        for name, parameter in named.items():
            self.view(self.values_N, name).copy_(parameter.data)
            parameter.data = self.view(self.values_N, name)
            parameter.grad = self.view(self.gradients_N, name)

    def view(self, flat_N: Tensor, name: str) -> Tensor:
        """Return a parameter's part of a flat tensor, in the parameter's shape."""
        return flat_N[self.slices[name]].view(self.shapes[name])

    def filled(self, value_of: Callable[[str, torch.Size], float]) -> Tensor:
        """Return a flat tensor with one number for each parameter."""
        out_N = torch.empty_like(self.values_N)
        for name, shape in self.shapes.items():
            out_N[self.slices[name]] = value_of(name, shape)
        return out_N
