"""Exported folders: safetensors in the compute type, which a worker maps into memory.

An export holds `model.safetensors` (exactly the tensors that inference reads, under NeMo's names),
`model_config.yaml` unchanged, `tokenizer.model`, and `export.json`, which names the source.
"""

from __future__ import annotations

import json
import os
import shutil
import tempfile
from dataclasses import replace
from pathlib import Path
from typing import Final

import torch
from safetensors.torch import save_file

from gpu_worker.model.errors import CheckpointError
from gpu_worker.model.loaded_model import CONFIG_NAME, TOKENIZER_NAME, LoadedModel, assemble, read_folder
from gpu_worker.model.loading.nemo_archive import read_nemo

WEIGHTS_NAME: Final = "model.safetensors"
ORIGIN_NAME: Final = "export.json"
DTYPES: Final = {"float32": torch.float32, "bfloat16": torch.bfloat16}


def export_checkpoint(
    source: Path, target: Path, dtype: torch.dtype, *, origin: str | None = None, revision: str | None = None
) -> None:
    """Write the checkpoint at `source` (`.nemo` file or folder) as the folder `target`.

    The folder appears whole or not at all. A folder that exists already is left unchanged.
    Raises ModelError for a bad checkpoint, and OSError when the folder cannot be written.
    """
    if target.exists():
        raise CheckpointError(f"{target} is there already; an export makes a new folder.")
    if source.is_dir():
        model = read_folder(source, dtype=dtype)
        config_text = (source / CONFIG_NAME).read_text(encoding="utf-8")
    else:
        archive = read_nemo(source)
        model = assemble(
            archive.config, archive.weights, archive.tokenizer, str(source), dtype=dtype, device="cpu"
        )
        config_text = archive.config_text
    write_export(model, config_text, target, origin=origin or str(source.resolve()), revision=revision)


def write_export(
    model: LoadedModel, config_text: str, target: Path, *, origin: str, revision: str | None
) -> None:
    """Write a loaded model as a folder, atomically; a folder that another writer made first stays."""
    target.parent.mkdir(parents=True, exist_ok=True)
    partial = Path(tempfile.mkdtemp(prefix=f".{target.name}.", dir=target.parent))
    try:
        dtype = str(model.dtype).removeprefix("torch.")
        save_file(
            {name: tensor.detach().cpu().contiguous() for name, tensor in model.weights.items()},
            partial / WEIGHTS_NAME,
            metadata={"format": "pt", "dtype": dtype},
        )
        (partial / CONFIG_NAME).write_text(config_text, encoding="utf-8")
        (partial / TOKENIZER_NAME).write_bytes(model.tokenizer.model)
        note = {"origin": origin, "revision": revision, "dtype": dtype}
        (partial / ORIGIN_NAME).write_text(json.dumps(note, indent=1) + "\n", encoding="utf-8")
        partial.chmod(0o755)
        # On disk first: after a loss of power a renamed folder could hold zeros, which nothing would notice.
        for path in (*partial.iterdir(), partial):
            _sync(path)
        os.rename(partial, target)  # noqa: PTH104
    except OSError:
        # A rename onto a folder with files in it fails: another worker has exported the same model.
        if not (target / WEIGHTS_NAME).is_file():
            raise
    finally:
        shutil.rmtree(partial, ignore_errors=True)


def _sync(path: Path) -> None:
    """Write a file, or the names in a folder, to disk."""
    opened = os.open(path, os.O_RDONLY)
    try:
        os.fsync(opened)
    finally:
        os.close(opened)


def read_export(
    folder: Path, *, dtype: torch.dtype, device: torch.device | str, source: str, revision: str | None
) -> LoadedModel:
    """Map an export; `source` and `revision` replace the folder's name in reports."""
    model = read_folder(folder, dtype=dtype, device=device)
    return replace(model, source=source, revision=revision)
