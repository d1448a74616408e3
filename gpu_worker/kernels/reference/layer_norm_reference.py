"""Reference of `layer_norm.py` in plain PyTorch.

Shape suffixes: M rows (streams x frames), D width of the model.
"""

from __future__ import annotations

from torch import Tensor
from torch.nn import functional as F


def layer_norm(x_MD: Tensor, weight_D: Tensor, bias_D: Tensor, eps: float) -> Tensor:
    """Return the layer norm over the last dimension, computed in float32."""
    normed_MD = F.layer_norm(x_MD.float(), x_MD.shape[-1:], weight_D.float(), bias_D.float(), eps)
    return normed_MD.to(x_MD.dtype)


def two_layer_norms(
    x_MD: Tensor, weight_D: Tensor, bias_D: Tensor, next_weight_D: Tensor, next_bias_D: Tensor, eps: float
) -> tuple[Tensor, Tensor]:
    """Compute the last norm of a Conformer layer and the first norm of the next one.

    Returns the layer's output, which is the next residual, and its norm by the next layer's weights.
    """
    layer_MD = layer_norm(x_MD, weight_D, bias_D, eps)
    return layer_MD, layer_norm(layer_MD, next_weight_D, next_bias_D, eps)
