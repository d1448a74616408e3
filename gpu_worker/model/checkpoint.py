"""Finding and reading a model: bundled, exported folder, `.nemo` file, or hub id."""

from __future__ import annotations

from pathlib import Path
from typing import Final

import torch

from gpu_worker.model.errors import CheckpointError
from gpu_worker.model.loaded_model import LoadedModel, assemble, read_folder
from gpu_worker.model.nemo_archive import read_nemo

__all__ = ["BUNDLED", "LoadedModel", "load_model", "read_checkpoint"]

BUNDLED: Final = Path(__file__).parent / "bundled"


def load_model(
    source: str | Path | None,
    *,
    size: str = "small",
    revision: str = "main",
    dtype: torch.dtype = torch.float32,
    device: torch.device | str = "cpu",
) -> LoadedModel:
    """Load what `--model` names, or where it is not given what `--model-size` names.

    Raises ModelError.
    """
    if source is None and size == "tiny":
        return read_checkpoint(BUNDLED / "tiny", dtype=dtype, device=device)
    if source is not None and Path(source).exists():
        return read_checkpoint(Path(source), dtype=dtype, device=device)
    raise CheckpointError(f"There is no folder or file '{source}' (size {size}, revision {revision}).")


def read_checkpoint(
    path: Path, *, dtype: torch.dtype = torch.float32, device: torch.device | str = "cpu"
) -> LoadedModel:
    """Read an exported folder or a `.nemo` file.

    Raises ModelConfigError, TokenizerError, CheckpointError.
    """
    if path.is_dir():
        return read_folder(path, dtype=dtype, device=device)
    if path.is_file():
        archive = read_nemo(path)
        return assemble(
            archive.config, archive.weights, archive.tokenizer, str(path), dtype=dtype, device=device
        )
    raise CheckpointError(f"There is no folder or file '{path}'.")
