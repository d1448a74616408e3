"""A name for a model's weights, for snapshots that must not meet another's."""

from __future__ import annotations

import hashlib

from gpu_worker.model.loaded_model import LoadedModel


def model_fingerprint(loaded: LoadedModel, context: tuple[int, int], *, reset_at_end: bool) -> str:
    """Names a model's weights, compute type and context.

    A few tensors stand for all: two checkpoints that agree in the joint network's output layer and the
    last layer's norm are the same.
    """
    digest = hashlib.sha256()
    digest.update(repr((loaded.config, context, str(loaded.dtype), reset_at_end)).encode())
    last = loaded.config.num_layers - 1
    for name in ("joint.joint_net.2.weight", f"encoder.layers.{last}.norm_out.weight"):
        digest.update(loaded.weights[name].detach().float().cpu().numpy().tobytes())
    return digest.hexdigest()
