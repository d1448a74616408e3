"""The commands `parakeet-server model inspect` and `model export`."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch

from gpu_worker.model.config import ModelConfig
from gpu_worker.model.errors import CheckpointError
from gpu_worker.model.loaded_model import LoadedModel
from gpu_worker.model.loading.checkpoint import BUNDLED, read_checkpoint
from gpu_worker.model.loading.export import DTYPES, export_checkpoint
from gpu_worker.model.loading.hub import HUB_IDS, Hub


def describe(path: str, revision: str = "main", *, as_json: bool = False) -> str:
    """Describe a checkpoint: a table for people, or JSON.  Raises ModelError."""
    file, commit = locate(path, revision)
    facts = model_facts(read_checkpoint(file), commit)
    if as_json:
        return json.dumps(facts, indent=2)
    width = max(len(name) for name in facts)
    return "\n".join(f"{name.replace('_', ' '):<{width}}  {_shown(value)}" for name, value in facts.items())


def export(path: str, revision: str, output: Path, dtype: str) -> str:
    """Export a checkpoint as a folder; returns a sentence about it.  Raises ModelError, OSError."""
    if output.exists():
        raise CheckpointError(f"{output} is there already; name a folder that is not.")
    file, commit = locate(path, revision)
    export_checkpoint(file, output, DTYPES[dtype], origin=path, revision=commit)
    size = sum(part.stat().st_size for part in output.iterdir())
    return f"{output}: {size / 1e6:.1f} MB, {dtype}; start with --model {output}"


def locate(path: str, revision: str) -> tuple[Path, str | None]:
    """Return the folder or `.nemo` file of a name, and its hub commit; fetches the files of a hub id."""
    if path == "tiny":
        return BUNDLED / "tiny", None
    if Path(path).exists():
        return Path(path), None
    repo_id = HUB_IDS.get(path, path)
    if repo_id.count("/") != 1 or repo_id.startswith((".", "/")) or repo_id.endswith(".nemo"):
        raise CheckpointError(f"There is no folder or file '{path}', and it is no hub id.")
    hub = Hub()
    commit = hub.resolve(repo_id, revision)
    return hub.fetch(hub.find(repo_id, commit)), commit


def model_facts(model: LoadedModel, commit: str | None) -> dict[str, Any]:
    """Return the facts of a loaded model, in the order of display."""
    config = model.config
    return {
        "source": model.source,
        "commit": commit,
        "class": config.model_class,
        "parameters": model.num_parameters,
        "encoder_layers": config.num_layers,
        "d_model": config.d_model,
        "heads": config.num_heads,
        "predictor": f"LSTM {config.pred_layers} x {config.pred_hidden}",
        "joint": config.joint_hidden,
        "vocabulary": config.vocab_size,
        "blank_id": config.blank_id,
        "eou_id": config.eou_id,
        "eob_id": config.eob_id,
        "languages": [name for name, _ in config.prompt.languages] if config.prompt else None,
        "attention_contexts": [list(context) for context in config.att_contexts],
        "default_context": list(config.default_context),
        "chunk_ms": list(config.chunk_sizes_ms),
        "stream_bytes_float32": stream_state_bytes(config, config.default_context[0], torch.float32),
        "stream_bytes_bfloat16": stream_state_bytes(config, config.default_context[0], torch.bfloat16),
    }


def stream_state_bytes(config: ModelConfig, left_frames: int, dtype: torch.dtype) -> int:
    """Return the device memory of one stream's keys, values and convolution caches, in all layers.

    Predictor state and sample tail add some kilobytes, and pages are rounded up.
    """
    keys_values = 2 * left_frames * config.d_model
    convolution = (config.conv_kernel - 1) * config.d_model
    return config.num_layers * (keys_values + convolution) * dtype.itemsize


def _shown(value: object) -> str:
    if value is None:
        return "-"
    if isinstance(value, int) and value >= 100_000:
        return f"{value:,}"
    if isinstance(value, list):
        return ", ".join(str(item) for item in value)
    return str(value)
