"""Muon: momentum is made orthogonal, so that an update cannot go into a single direction.

Source: Jordan et al. 2024, "Muon: an optimizer for hidden layers in neural networks".
"""

from __future__ import annotations

import torch
from torch import Tensor

from training.optimiser.flat import FlatParameters

INERTIA = 0.95
# The quintic's coefficients are Muon's: singular values end between about 0.7 and 1.2 after five rounds.
_COEFFICIENTS = (3.4445, -4.7750, 2.0315)
_ROUNDS = 5


def orthogonalised(matrices_KMN: Tensor) -> Tensor:
    """Return matrices of equal singular vectors and singular values near 1, by Newton-Schulz iteration."""
    tall = matrices_KMN.shape[1] > matrices_KMN.shape[2]
    x = matrices_KMN.to(torch.bfloat16 if matrices_KMN.is_cuda else torch.float32)
    x = x.mT if tall else x
    size: Tensor = torch.linalg.matrix_norm(x, keepdim=True)
    x = x / (size + 1e-7)
    a, b, c = _COEFFICIENTS
    for _ in range(_ROUNDS):
        gram = x @ x.mT
        x = a * x + (b * gram + c * (gram @ gram)) @ x
    return (x.mT if tall else x).float()


class Muon:
    """Updates the named matrices, in one batch for each shape."""

    def __init__(self, parameters: FlatParameters, names: list[str], decay: float = 0.01) -> None:
        self._parameters, self._decay = parameters, decay
        self._by_shape: dict[tuple[int, int], list[str]] = {}
        for name in names:
            shape = parameters.shapes[name]
            self._by_shape.setdefault((shape[0], shape[1]), []).append(name)

    def step(self, momentum_N: Tensor, rate: float) -> None:
        """Update the matrices against their momentum, with Nesterov's look-ahead."""
        flat = self._parameters
        ahead_N = torch.lerp(flat.gradients_N, momentum_N, INERTIA)
        for shape, names in self._by_shape.items():
            stacked = torch.stack([flat.view(ahead_N, name).reshape(shape) for name in names])
            # An update's root mean square is then about 0.2, as AdamW's is.
            update = orthogonalised(stacked) * (0.2 * max(shape) ** 0.5)
            for name, change in zip(names, update, strict=True):
                value = flat.view(flat.values_N, name)
                value.mul_(1.0 - rate * self._decay).add_(change.view(value.shape), alpha=-rate)
