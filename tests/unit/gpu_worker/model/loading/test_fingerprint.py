"""The name of a model's weights."""

from __future__ import annotations

import re

import torch

from gpu_worker.model.loading.fingerprint import weights_name
from tests.oracle.models import tiny

LAST_NORM = "encoder.layers.{}.norm_out.weight"


def test_a_name_is_the_same_in_every_compute_type() -> None:
    loaded = tiny()
    layers = loaded.config.num_layers
    name = weights_name(loaded.weights, layers)
    assert re.fullmatch("[0-9a-f]{16}", name)
    rounded = {key: value.to(torch.bfloat16) for key, value in loaded.weights.items()}
    assert weights_name(rounded, layers) == name
    copied = {key: value.clone() for key, value in loaded.weights.items()}
    assert weights_name(copied, layers) == name


def test_other_weights_have_another_name() -> None:
    loaded = tiny()
    layers = loaded.config.num_layers
    for changed in ("joint.joint_net.2.weight", LAST_NORM.format(layers - 1)):
        other = {**loaded.weights, changed: loaded.weights[changed] * 1.02}
        assert weights_name(other, layers) != weights_name(loaded.weights, layers)
