"""Joint network: the sum of the encoder's and predictor's projections, ReLU, output layer.

Shape legend: D encoder width, U predictor width, J joint width, V vocabulary with blank.

Source: NeMo `RNNTJoint`.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from gpu_worker.model.layers.product import Product


class Joint:
    """The joint network: computes logits over tokens and blank."""

    def __init__(self, weights: Mapping[str, Tensor]) -> None:
        def product(name: str) -> Product:
            return Product(weights[f"{name}.weight"], weights[f"{name}.bias"])

        self._encoder, self._predictor = product("joint.enc"), product("joint.pred")
        self._out = product("joint.joint_net.2")

    def project_encoder(self, x: Tensor) -> Tensor:
        """Project encoder frames [..., D] to [..., J]."""
        return self._encoder.over_last(x)

    def project_predictor(self, hidden: Tensor) -> Tensor:
        """Project predictor output [..., U] to [..., J]."""
        return self._predictor.over_last(hidden)

    def logits(self, encoder: Tensor, predictor: Tensor) -> Tensor:
        """Compute logits [..., V] of projected encoder and predictor, whose shapes broadcast."""
        return self._out.over_last(torch.relu_(encoder + predictor))
