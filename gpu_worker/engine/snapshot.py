"""The bytes of a stream's snapshot: a header of JSON and the tensors of its slot, as safetensors.

Keys and values are stored frame by frame, oldest first, so that a snapshot does not depend on the size
or the order of pages.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load, save
from torch import Tensor

from gpu_worker.engine.interface import SnapshotMismatch
from gpu_worker.model.loaded_model import LoadedModel

_VERSION = 1
_HEADER = "header"


@dataclass(frozen=True, slots=True)
class Snapshot:
    """A stream between two steps.  `host` are JSON values, `tensors` lie on the host."""

    model: str
    host: Mapping[str, Any]
    tensors: Mapping[str, Tensor]

    def to_bytes(self) -> bytes:
        """Serialize."""
        header = json.dumps({"version": _VERSION, "model": self.model, "host": self.host}).encode()
        return save({**self.tensors, _HEADER: torch.frombuffer(bytearray(header), dtype=torch.uint8)})

    @classmethod
    def from_bytes(cls, blob: bytes, model: str) -> Snapshot:
        """Read what `to_bytes` wrote.  Raises SnapshotMismatch for another model or layout."""
        try:
            tensors = load(blob)
            header = json.loads(tensors.pop(_HEADER).numpy().tobytes())
            version, of_model, host = header["version"], header["model"], header["host"]
        except (SafetensorError, KeyError, ValueError, TypeError) as error:
            raise SnapshotMismatch(f"The snapshot cannot be read: {error}.") from error
        if version != _VERSION or of_model != model:
            raise SnapshotMismatch("The snapshot was taken by another model, context or version.")
        return cls(of_model, host, tensors)


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
