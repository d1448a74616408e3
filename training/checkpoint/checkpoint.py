"""A checkpoint of training on disk: a manifest and parts of at most 15 MiB, together at most 20 MB.

It holds the averaged weights, both optimisers, and the place in the text. The weights alone would be 24 MB
in half precision, so they are stored as 8-bit differences from weights that the next session has anyway: the
weights of the release with which training began. Muon's momentum takes 4 bits, since only its direction
counts; AdamW's second moment is stored as a logarithm, since a rounding to zero would be a division by zero.

Training continues from the averaged weights, not from those of the last step, which are worse.
"""

from __future__ import annotations

import hashlib
import json
import zlib
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Final

import torch
from safetensors.torch import load, save
from torch import Tensor

from training.checkpoint.quantised import Quantised, quantise, restore
from training.optimiser.flat import FlatParameters
from training.optimiser.optimiser import Optimiser, by_muon

MANIFEST_NAME: Final = "checkpoint.json"
MAX_PART_BYTES: Final = 15 << 20
MAX_BYTES: Final = 20_000_000
_VARIANCE_FLOOR: Final = 1e-24
# Bits and block size of each tensor; a checkpoint states its own.
_FORMATS: Final = {"weights": (8, 256), "muon": (4, 256), "momentum": (8, 256), "log_variance": (8, 256)}


class TrainingCheckpointError(Exception):
    """A checkpoint is damaged, or belongs to another model or another base."""


@dataclass(frozen=True, slots=True)
class Progress:
    """The progress of training.

    Args:
        num_steps: steps done, of all sessions.
        next_row: first line of the text that has not been spoken yet.
        num_sessions: sessions so far; the seeds of the next session depend on it.
        share: share of the whole training that is done, 0 to 1.
    """

    num_steps: int = 0
    next_row: int = 0
    num_sessions: int = 0
    share: float = 0.0


def flat_weights(parameters: FlatParameters, weights: Mapping[str, Tensor]) -> Tensor:
    """Return named weights as one flat float32 tensor on the CPU, with zeros for missing names."""
    out_N = torch.zeros(parameters.values_N.numel())
    for name, part in parameters.slices.items():
        if name in weights:
            out_N[part] = weights[name].detach().float().cpu().view(-1)
    return out_N


def save_checkpoint(folder: Path, optimiser: Optimiser, progress: Progress, base_N: Tensor) -> int:
    """Write a checkpoint and return its bytes; the previous one stays whole until the new one is.

    Args:
        folder: the checkpoint's folder, which is created if it does not exist.
        optimiser: optimiser with the averaged weights.
        progress: progress from which the next session continues.
        base_N: weights from which the stored differences are taken, as returned by `flat_weights`.
    """
    tensors: dict[str, Tensor] = {}
    sizes: dict[str, int] = {}
    for name, values in _values(optimiser, base_N).items():
        bits, block = _FORMATS[name]
        stored = quantise(values, bits, block, centred=name != "log_variance")
        tensors |= {f"{name}.codes": stored.codes, f"{name}.step": stored.step}
        if stored.begin is not None:
            tensors[f"{name}.begin"] = stored.begin
        sizes[name] = stored.size
    packed = _compressed(save(tensors))
    if len(packed) > MAX_BYTES:
        raise TrainingCheckpointError(f"The checkpoint takes {len(packed)} bytes; {MAX_BYTES} are allowed.")
    folder.mkdir(parents=True, exist_ok=True)
    parts = []
    for number, start in enumerate(range(0, len(packed), MAX_PART_BYTES)):
        data = packed[start : start + MAX_PART_BYTES]
        name = f"state-{progress.num_steps:07d}.{number}"
        (folder / name).write_bytes(data)
        parts.append({"name": name, "sha256": hashlib.sha256(data).hexdigest()})
    manifest = {
        "progress": asdict(progress),
        "layout": _layout(optimiser.parameters),
        "base": digest(base_N),
        "formats": _FORMATS,
        "sizes": sizes,
        "parts": parts,
    }
    partial = folder / f"{MANIFEST_NAME}.partial"
    partial.write_text(json.dumps(manifest, indent=1) + "\n", encoding="utf-8")
    partial.replace(folder / MANIFEST_NAME)
    kept = {part["name"] for part in parts}
    for old in folder.glob("state-*"):
        if old.name not in kept:
            old.unlink()
    return len(packed)


def load_checkpoint(folder: Path, optimiser: Optimiser, base_N: Tensor) -> Progress:
    """Load a checkpoint's weights and moments into an optimiser and its parameters.

    Raises TrainingCheckpointError if a part is missing or damaged, or if the model or the base differs.
    """
    manifest = _manifest(folder)
    if manifest["layout"] != _layout(optimiser.parameters):
        raise TrainingCheckpointError(f"{folder} belongs to a model of another shape.")
    if manifest["base"] != digest(base_N):
        raise TrainingCheckpointError(
            f"{folder} holds differences from other weights than those given: pass the ones that its "
            "training went on from."
        )
    tensors = load(zlib.decompress(b"".join(_part(folder, part) for part in manifest["parts"])))
    values = {
        name: restore(
            Quantised(
                tensors[f"{name}.codes"],
                tensors[f"{name}.step"],
                tensors.get(f"{name}.begin"),
                manifest["sizes"][name],
                *manifest["formats"][name],
            )
        )
        for name in _FORMATS
    }
    device = optimiser.average_N.device
    muon_N = _muon_mask(optimiser.parameters)
    optimiser.average_N.copy_(base_N + values["weights"])
    optimiser.parameters.values_N.copy_(optimiser.average_N)
    optimiser.momentum_N[muon_N] = values["muon"].to(device)
    optimiser.momentum_N[~muon_N] = values["momentum"].to(device)
    variance = torch.exp2(values["log_variance"])
    optimiser.variance_N[~muon_N] = torch.where(variance > 2 * _VARIANCE_FLOOR, variance, 0.0).to(device)
    progress = Progress(**manifest["progress"])
    optimiser.num_steps = progress.num_steps
    return progress


def read_progress(folder: Path) -> Progress:
    """Return the progress of the checkpoint in a folder."""
    return Progress(**_manifest(folder)["progress"])


def digest(base_N: Tensor) -> str:
    """Return a digest of a base's numbers."""
    return hashlib.sha256(base_N.contiguous().numpy().tobytes()).hexdigest()


def _values(optimiser: Optimiser, base_N: Tensor) -> dict[str, Tensor]:
    muon_N = _muon_mask(optimiser.parameters)
    return {
        "weights": optimiser.average_N.cpu() - base_N,
        "muon": optimiser.momentum_N[muon_N],
        "momentum": optimiser.momentum_N[~muon_N],
        "log_variance": optimiser.variance_N[~muon_N].clamp(min=_VARIANCE_FLOOR).log2(),
    }


def _muon_mask(parameters: FlatParameters) -> Tensor:
    return parameters.filled(lambda name, shape: float(by_muon(name, shape))).bool()


def _compressed(data: bytes) -> bytes:
    """Compress codes. They are noise with a distribution, so a Huffman code is enough, and fast."""
    packer = zlib.compressobj(level=6, strategy=zlib.Z_HUFFMAN_ONLY)
    return packer.compress(data) + packer.flush()


def _layout(parameters: FlatParameters) -> str:
    described = json.dumps([[name, list(shape)] for name, shape in parameters.shapes.items()])
    return hashlib.sha256(described.encode()).hexdigest()


def _manifest(folder: Path) -> dict[str, Any]:
    path = folder / MANIFEST_NAME
    try:
        manifest: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise TrainingCheckpointError(f"{path} cannot be read: {error}") from error
    return manifest


def _part(folder: Path, part: Mapping[str, str]) -> bytes:
    try:
        data = (folder / part["name"]).read_bytes()
    except OSError as error:
        raise TrainingCheckpointError(f"A part of {folder} cannot be read: {error}") from error
    if hashlib.sha256(data).hexdigest() != part["sha256"]:
        raise TrainingCheckpointError(f"{folder / part['name']} is damaged.")
    return data
