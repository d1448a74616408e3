"""Joint network: projections of encoder and predictor, added, ReLU, output layer.

Shape legend: D encoder width, U predictor width, J joint width, V vocabulary with blank.

Source: NeMo `RNNTJoint`.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
import torch.nn.functional as F
from torch import Tensor


class Joint:
    """Logits over tokens and blank."""

    def __init__(self, weights: Mapping[str, Tensor]) -> None:
        self._encoder = weights["joint.enc.weight"]
        self._encoder_bias = weights["joint.enc.bias"]
        self._predictor = weights["joint.pred.weight"]
        self._predictor_bias = weights["joint.pred.bias"]
        self._out = weights["joint.joint_net.2.weight"]
        self._out_bias = weights["joint.joint_net.2.bias"]

    @property
    def width(self) -> int:
        """J."""
        return self._out.shape[1]

    def project_encoder(self, x: Tensor) -> Tensor:
        """[..., D] to [..., J]."""
        return F.linear(x, self._encoder, self._encoder_bias)

    def project_predictor(self, hidden: Tensor) -> Tensor:
        """[..., U] to [..., J]."""
        return F.linear(hidden, self._predictor, self._predictor_bias)

    def logits(self, encoder: Tensor, predictor: Tensor) -> Tensor:
        """Projected encoder and predictor, of shapes that broadcast, to logits [..., V]."""
        return F.linear(torch.relu_(encoder + predictor), self._out, self._out_bias)
