"""What the oracle left in its cache: checkpoints and reference values."""

from __future__ import annotations

import os
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

from gpu_worker.model.loaded_model import LoadedModel
from gpu_worker.model.loading.checkpoint import read_checkpoint
from tests.golden.clips import Clip, medleys, single_clips

CACHE = Path(os.environ.get("PARAKEET_GOLDEN_CACHE") or Path(__file__).parent / ".cache")
MODELS = (os.environ.get("PARAKEET_GOLDEN_MODELS") or "tiny small prompted variant").split()
CONTEXTS = {
    "tiny": ((70, 13), (70, 6), (70, 1), (70, 0)),
    "small": ((70, 1),),
    "large": ((70, 13), (70, 6), (70, 1), (70, 0)),
    "prompted": ((56, 13), (56, 6), (56, 3), (56, 1), (56, 0)),
    "variant": ((70, 13), (70, 6), (70, 1), (70, 0)),
}
CASES = [(name, context) for name in MODELS for context in CONTEXTS[name]]
DETAILED = ("goforward", "jfk")


@dataclass(frozen=True, slots=True)
class Decoding:
    """Tokens of one clip, the encoder frame and NeMo's confidence of each."""

    tokens: list[int]
    frames: list[int]
    confidences: list[float]


@cache
def checkpoint(name: str) -> LoadedModel:
    """NeMo's own `.nemo` file, read by ours in float32.  Fails the test when it is not there."""
    path = CACHE / name / f"{name}.nemo"
    if not path.is_file():
        pytest.fail(f"{path} is not there; `make golden` makes it")
    return read_checkpoint(path)


@cache
def clips() -> dict[str, Clip]:
    """Every clip by its name."""
    return {clip.name: clip for clip in (*single_clips(), *medleys(32))}


def reference_names(name: str, context: tuple[int, int]) -> list[str]:
    """Clips with a reference, those under the default language prompt."""
    prefix = f"{name}-{context[0]}-{context[1]}-"
    found = sorted(path.stem.removeprefix(prefix) for path in (CACHE / name).glob(f"{prefix}*.npz"))
    return [clip for clip in found if clip in clips()]


def reference(name: str, context: tuple[int, int], clip: str) -> dict[str, NDArray[np.float32]]:
    """All values of one reference."""
    path = CACHE / name / f"{name}-{context[0]}-{context[1]}-{clip}.npz"
    if not path.is_file():
        pytest.fail(f"{path} is not there; `make golden` makes it")
    with np.load(path) as values:
        return {key: values[key] for key in values.files}


def decoding(values: dict[str, NDArray[np.float32]], *, reset: bool) -> Decoding:
    """Tokens of a reference, with or without a reset of the predictor at `<EOU>` and `<EOB>`."""
    prefix = "reset_" if reset else ""
    return Decoding(
        values[f"{prefix}tokens"].astype(int).tolist(),
        values[f"{prefix}frames"].astype(int).tolist(),
        values[f"{prefix}confidences"].astype(float).tolist(),
    )
