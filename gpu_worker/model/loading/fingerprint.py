"""Fingerprints of a model: of its weights, and of everything that a snapshot depends on."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from typing import Final

import torch
from torch import Tensor

from gpu_worker.model.loaded_model import LoadedModel

_JOINT: Final = "joint.joint_net.2.weight"
_LAST_NORM: Final = "encoder.layers.{}.norm_out.weight"
_NUM_DIGITS: Final = 16


def model_fingerprint(loaded: LoadedModel, context: tuple[int, int], *, reset_at_end: bool) -> str:
    """Return a fingerprint of a model's weights, compute type and context.

    A few tensors represent all: two checkpoints with equal tensors of the joint network's output layer and of
    the last layer's norm count as the same.
    """
    digest = hashlib.sha256()
    digest.update(repr((loaded.config, context, str(loaded.dtype), reset_at_end)).encode())
    last = loaded.config.num_layers - 1
    for name in ("joint.joint_net.2.weight", f"encoder.layers.{last}.norm_out.weight"):
        digest.update(loaded.weights[name].detach().float().cpu().numpy().tobytes())
    return digest.hexdigest()


def weights_name(weights: Mapping[str, Tensor], num_layers: int) -> str:
    """Return 16 hexadecimal digits for tensors under NeMo's names, in any compute type.

    Two tensors represent all: checkpoints with equal weights of the joint network's output layer and of the
    last layer's norm count as the same model. They are compared as bfloat16, to which float32 weights round.
    """
    digest = hashlib.sha256()
    for name in (_JOINT, _LAST_NORM.format(num_layers - 1)):
        bits = weights[name].detach().to("cpu", torch.bfloat16).contiguous().view(torch.int16)
        digest.update(bits.numpy().tobytes())
    return digest.hexdigest()[:_NUM_DIGITS]
