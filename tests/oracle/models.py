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

from gpu_worker.model.loaded_model import LoadedModel
from gpu_worker.model.loading.checkpoint import load_model
from gpu_worker.model.loading.expected_tensors import expected_tensors
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

    The front end looks at differences, as log-mel is far from zero and would else drown in its mean, and
    the blank is biased so that speech gives about one token a frame.
    """
    return _random_model(seed, tuple(sorted(changes.items())))


@cache
def _random_model(seed: int, changes: tuple[tuple[str, Any], ...]) -> LoadedModel:
    base = tiny()
    config = replace(
        base.config, num_layers=2, d_model=32, num_heads=2, ff_dim=64, subsampling_channels=8,
        pred_hidden=24, joint_hidden=20,
    )  # fmt: skip
    config = replace(config, **dict(changes))
    generator = torch.Generator().manual_seed(seed)
    weights: dict[str, torch.Tensor] = {}
    for name, shape in expected_tensors(config).items():
        if name.startswith("preprocessor."):
            weights[name] = base.weights[name]
            continue
        fan_in = int(np.prod(shape[1:])) if len(shape) > 1 else 25
        value = torch.randn(shape, generator=generator) / fan_in**0.5
        if name.startswith("encoder.pre_encode.") and name.endswith(".weight") and fan_in > 8:
            value -= value.flatten(1).mean(1).view(-1, *[1] * (len(shape) - 1))
        is_norm = ".norm_" in name or ".batch_norm" in name
        weights[name] = value + 1.0 if is_norm and name.endswith(".weight") else value
    loaded = replace(base, config=config, weights=weights, source=f"random {seed}")
    _make_talkative(loaded, weights)
    return loaded


@torch.no_grad()
def _make_talkative(loaded: LoadedModel, weights: dict[str, torch.Tensor]) -> None:
    """Let the joint network see how frames differ, and bias the blank to about a token a frame."""
    encoded = OfflineOracle(loaded, (70, 1)).run(torch.tensor(speech(JFK)[:32_000])).encoded
    scale = 3.0 / encoded.std(0)
    weights["joint.enc.weight"] *= scale
    weights["joint.enc.bias"] -= weights["joint.enc.weight"] @ encoded.mean(0)
    weights["joint.joint_net.2.weight"] *= 2.0
    weights["joint.pred.weight"] *= 4.0
    # The start and every token change the predictor a lot, so that a token seldom follows itself.
    weights["decoder.prediction.embed.weight"] *= 4.0
    bias = weights["joint.joint_net.2.bias"]
    low, high = 0.0, 60.0
    for _ in range(12):
        bias[loaded.config.blank_id] = (low + high) / 2
        num_tokens = len(OfflineOracle(loaded, (70, 1)).greedy(encoded)[0])
        low, high = ((low + high) / 2, high) if num_tokens > len(encoded) else (low, (low + high) / 2)
    bias[loaded.config.blank_id] = high


@cache
def offline(name: str, context: tuple[int, int], num_samples: int | None = None) -> Offline:
    """The oracle's result for a recording, or its beginning, under tiny."""
    return OfflineOracle(tiny(), context).run(torch.tensor(speech(name)[:num_samples]))
