"""Models and recordings that the tests share: the bundled tiny one, and random ones of any shape."""

from __future__ import annotations

import wave
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from gpu_worker.model.checkpoint import load_model
from gpu_worker.model.expected_tensors import expected_tensors
from gpu_worker.model.loaded_model import LoadedModel
from tests.oracle.offline import Offline, OfflineOracle

RECORDINGS = Path(__file__).parents[2] / "parakeet" / "recordings"
GO_FORWARD = "goforward.wav"
JFK = "jfk.wav"
LONG_SENTENCE = "sense_and_sensibility_01_austen_64kb-0870.wav"
SHORT_SENTENCE = "sense_and_sensibility_01_austen_64kb-0880.wav"
ALL_RECORDINGS = (GO_FORWARD, JFK, LONG_SENTENCE, SHORT_SENTENCE)


@cache
def tiny() -> LoadedModel:
    """The bundled model, in float32 on CPU."""
    torch.set_num_threads(1)
    return load_model(None, size="tiny")


@cache
def speech(name: str) -> NDArray[np.float32]:
    """A bundled recording as float32 samples at 16 kHz."""
    with wave.open(str(RECORDINGS / name)) as file:
        assert file.getframerate() == 16_000
        samples = np.frombuffer(file.readframes(-1), dtype=np.int16)
    audio: NDArray[np.float32] = samples.astype(np.float32) / np.float32(32_768)
    audio.flags.writeable = False
    return audio


def random_model(seed: int = 0, **changes: Any) -> LoadedModel:
    """A checkpoint of random weights: tiny's shape with some sizes or switches changed.

    The blank's logit is biased so that tokens come now and then, as in speech.
    """
    torch.set_num_threads(1)
    base = tiny()
    config = replace(
        base.config, num_layers=2, d_model=32, num_heads=2, ff_dim=64, subsampling_channels=8,
        pred_hidden=24, joint_hidden=20,
    )  # fmt: skip
    config = replace(config, **changes)
    generator = torch.Generator().manual_seed(seed)
    weights: dict[str, torch.Tensor] = {}
    for name, shape in expected_tensors(config).items():
        if name.startswith("preprocessor."):
            weights[name] = base.weights[name]
            continue
        fan_in = int(np.prod(shape[1:])) if len(shape) > 1 else 4
        value = torch.randn(shape, generator=generator) / fan_in**0.5
        is_norm = ".norm_" in name or ".batch_norm" in name
        weights[name] = value + 1.0 if is_norm and name.endswith(".weight") else value
    weights["joint.joint_net.2.weight"] *= 3.0
    weights["joint.joint_net.2.bias"][config.blank_id] += 4.0
    return replace(base, config=config, weights=weights, source=f"random {seed}")


@cache
def offline(name: str, context: tuple[int, int], num_samples: int | None = None) -> Offline:
    """The oracle's result for a recording, or its beginning, under tiny."""
    return OfflineOracle(tiny(), context).run(torch.tensor(speech(name)[:num_samples]))
