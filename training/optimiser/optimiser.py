"""The optimiser of training: the method and rate of each parameter, and the average that is shipped."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from training.optimiser.flat import FlatParameters
from training.optimiser.muon import INERTIA, Muon

SUBSAMPLING_OUT = "encoder.pre_encode.out.weight"
_BETA1, _BETA2, _EPSILON = 0.9, 0.98, 1e-8
_LONGEST_AVERAGE = 0.9995


@dataclass(frozen=True, slots=True)
class Rates:
    """Peak rates. Subsampling has a tenth of AdamW's rate, the encoder's norms and biases a fifth."""

    adam: float = 1e-3
    muon: float = 4e-3
    decay: float = 1e-3
    subsampling: float = 0.1
    norms: float = 0.2

    def share(self, name: str, shape: torch.Size) -> float:
        """Return a parameter's share of AdamW's rate; 0 for Muon's parameters."""
        if by_muon(name, shape):
            return 0.0
        if "pre_encode" in name:
            return self.subsampling
        return self.norms if len(shape) == 1 and name.startswith("encoder.") else 1.0


def by_muon(name: str, shape: torch.Size) -> bool:
    """Whether Muon updates a parameter: matrices of encoder layers, and the joint's encoder projection."""
    if name == "joint.enc.weight":
        return True
    if not name.startswith("encoder.layers.") or len(shape) < 2:
        return False
    return "depthwise" not in name and "pos_bias" not in name


def decays(name: str, shape: torch.Size) -> bool:
    """Whether AdamW's weight decay applies."""
    exempt = ("embed", "pre_encode", "pos_bias")
    return len(shape) > 1 and not by_muon(name, shape) and not any(part in name for part in exempt)


class Optimiser:
    """State of both optimisers, and a running average of the parameters: the weights that are shipped.

    `momentum_N`, `variance_N` and `average_N` are flat; `num_steps` counts from the first session on.
    """

    def __init__(self, parameters: FlatParameters, rates: Rates) -> None:
        self.parameters, self.rates = parameters, rates
        self.num_steps = 0
        self.momentum_N = torch.zeros_like(parameters.values_N)
        self.variance_N = torch.zeros_like(parameters.values_N)
        self.average_N = parameters.values_N.clone()
        names = [name for name, shape in parameters.shapes.items() if by_muon(name, shape)]
        self._muon = Muon(parameters, names)
        self._share_N = parameters.filled(rates.share)
        self._decays_N = parameters.filled(lambda name, shape: float(decays(name, shape)))
        self._inertia_N = parameters.filled(lambda name, shape: INERTIA if by_muon(name, shape) else _BETA1)
        self._mean_input: Tensor | None = None

    def keep_orthogonal_to(self, mean_input: Tensor) -> None:
        """Keep updates of the subsampling's output layer orthogonal to the mean of its inputs.

        Its thousands of inputs are all positive. Along their mean, AdamW would shift every output at once by
        several hundred times the rate, and the audio would be lost.
        """
        self._mean_input = mean_input / mean_input.norm()

    @torch.no_grad()
    def step(self, rate_share: float) -> None:
        """Update the parameters by their gradients at a share of the peak rates, and clear the gradients."""
        self.num_steps += 1
        flat = self.parameters
        self.momentum_N.lerp_(flat.gradients_N, 1.0 - self._inertia_N)
        self.variance_N.mul_(_BETA2).addcmul_(flat.gradients_N, flat.gradients_N, value=1.0 - _BETA2)
        self._adam_step(self.rates.adam * rate_share)
        self._muon.step(self.momentum_N, self.rates.muon * rate_share)
        kept = min(_LONGEST_AVERAGE, (1 + self.num_steps) / (20 + self.num_steps))
        self.average_N.lerp_(flat.values_N, 1.0 - kept)
        flat.gradients_N.zero_()

    def _adam_step(self, rate: float) -> None:
        flat = self.parameters
        mean = self.momentum_N / (1.0 - _BETA1**self.num_steps)
        spread = (self.variance_N / (1.0 - _BETA2**self.num_steps)).sqrt_().add_(_EPSILON)
        update_N = mean.div_(spread)
        if self._mean_input is not None and SUBSAMPLING_OUT in flat.slices:
            update = flat.view(update_N, SUBSAMPLING_OUT)
            update -= torch.outer(update @ self._mean_input, self._mean_input)
        flat.values_N.mul_(1.0 - rate * self.rates.decay * self._decays_N)
        flat.values_N.addcmul_(update_N, self._share_N, value=-rate)


@torch.no_grad()
def limit_gradients(gradients_N: Tensor, finite: Tensor, max_norm: float = 2.0) -> Tensor:
    """Scale gradients down to a norm, or clear them if they or the losses are not finite.

    No value is copied to the host. Returns the norm before scaling.

    Args:
        gradients_N: changed in place.
        finite: bool without axes, whether the losses were finite.
        max_norm: the largest norm.
    """
    norm: Tensor = torch.linalg.vector_norm(gradients_N)
    fine = torch.isfinite(norm) & finite
    scale = torch.where(fine, (max_norm / (norm + 1e-6)).clamp(max=1.0), 0.0)
    # A product of NaN with zero would be NaN.
    gradients_N.copy_(torch.where(fine, gradients_N * scale, 0.0))
    return norm
