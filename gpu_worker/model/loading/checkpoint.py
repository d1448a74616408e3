"""Finding and reading a model: bundled, exported folder, `.nemo` file, or hub id.

A `.nemo` file, local or of the hub, is read once and exported beside the hub's cache in the worker's compute
type. Later loads map that export; this takes milliseconds, and the workers of a machine share its memory
pages.
"""

from __future__ import annotations

import hashlib
import logging
import shutil
import time
from pathlib import Path
from typing import Final

import torch
from huggingface_hub import constants

from common.settings.values import HUB_ID
from gpu_worker.model.errors import CheckpointError, ModelError
from gpu_worker.model.loaded_model import LoadedModel, assemble, read_folder
from gpu_worker.model.loading.export import DTYPES, export_checkpoint, read_export
from gpu_worker.model.loading.hub import HUB_IDS, Hub
from gpu_worker.model.loading.nemo_archive import read_nemo

__all__ = ["BUNDLED", "LoadedModel", "exports_folder", "load_model", "read_checkpoint"]

BUNDLED: Final = Path(__file__).parents[1] / "bundled"

logger = logging.getLogger(__name__)


def load_model(
    source: str | Path | None,
    *,
    size: str = "small",
    revision: str = "main",
    dtype: torch.dtype = torch.float32,
    device: torch.device | str = "cpu",
    hub: Hub | None = None,
) -> LoadedModel:
    """Load the model of `--model` (folder, `.nemo` file or hub id), or else of `--model-size`.

    `dtype` is torch.float32 or torch.bfloat16.  `revision` is a branch, tag or commit of the hub.
    Raises ModelError, whose message states the fault and what to do about it.
    """
    started = time.monotonic()
    hub = hub or Hub()
    if not source and size == "tiny":
        model = read_folder(BUNDLED / "tiny", dtype=dtype, device=device)
    else:
        named = str(source) if source else HUB_IDS.get(size)
        if named is None:
            sizes = ", ".join(("tiny", *HUB_IDS))
            raise CheckpointError(f"There is no model size '{size}'; there are {sizes}.")
        path = Path(named)
        if path.is_dir():
            model = read_folder(path, dtype=dtype, device=device)
        elif path.is_file():
            model = _through_export(
                path, _local_export(path, dtype, hub), named, None, dtype=dtype, device=device
            )
        elif HUB_ID.fullmatch(named) and not named.endswith(".nemo"):
            model = _from_hub(hub, named, revision, dtype=dtype, device=device)
        else:
            raise CheckpointError(
                f"--model '{named}' is neither a folder, nor a .nemo file, nor a hub id like "
                f"{HUB_IDS['small']}."
            )
    logger.info(
        "model loaded: %s%s, %d parameters, %s on %s, in %.2f s",
        model.source,
        f" at commit {model.revision}" if model.revision else "",
        model.num_parameters,
        _dtype_name(dtype),
        model.device,
        time.monotonic() - started,
        extra={"model": model.source, "commit": model.revision},
    )
    return model


def read_checkpoint(
    path: Path, *, dtype: torch.dtype = torch.float32, device: torch.device | str = "cpu"
) -> LoadedModel:
    """Read an exported folder or a `.nemo` file directly, without an export.

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


def exports_folder(hub: Hub | None = None) -> Path:
    """Return the folder of exports, which is beside the hub's cache."""
    cache = hub.cache_dir if hub is not None else Path(constants.HF_HUB_CACHE)
    return cache.parent / "parakeet-exports"


def _from_hub(
    hub: Hub, repo_id: str, revision: str, *, dtype: torch.dtype, device: torch.device | str
) -> LoadedModel:
    commit = hub.resolve(repo_id, revision)
    logger.info("%s at '%s' is commit %s", repo_id, revision, commit)
    export = exports_folder(hub) / repo_id.replace("/", "--") / commit / _dtype_name(dtype)
    if export.is_dir():
        return read_export(export, dtype=dtype, device=device, source=repo_id, revision=commit)
    path = hub.fetch(hub.find(repo_id, commit))
    return _through_export(path, export, repo_id, commit, dtype=dtype, device=device)


def _through_export(
    path: Path,
    export: Path,
    source: str,
    revision: str | None,
    *,
    dtype: torch.dtype,
    device: torch.device | str,
) -> LoadedModel:
    """Export the checkpoint at its first load, and map the export at every load.

    Without a writable cache the checkpoint is loaded without an export.
    """
    if not export.is_dir():
        try:
            export_checkpoint(path, export, dtype, origin=source, revision=revision)
        except ModelError:
            if not export.is_dir():
                raise
        except OSError as error:
            logger.warning(
                "the model cannot be exported to %s (%s); it is read in full at every start", export, error
            )
            return read_checkpoint(path, dtype=dtype, device=device)
    return read_export(export, dtype=dtype, device=device, source=source, revision=revision)


def _local_export(path: Path, dtype: torch.dtype, hub: Hub) -> Path:
    """Return the folder for the export of a local file; delete exports of its earlier versions."""
    path = path.resolve()
    stat = path.stat()
    identity = hashlib.blake2b(str(path).encode(), digest_size=8).hexdigest()
    folder = exports_folder(hub) / "local" / f"{path.stem}-{identity}"
    state = f"{stat.st_size}-{stat.st_mtime_ns}"
    if folder.is_dir():
        for former in folder.iterdir():
            if not former.name.startswith(".") and former.name.rpartition("-")[0] != state:
                # A worker that has mapped a deleted export keeps its pages: the files exist until the worker
                # ends.
                shutil.rmtree(former, ignore_errors=True)
    return folder / f"{state}-{_dtype_name(dtype)}"


def _dtype_name(dtype: torch.dtype) -> str:
    for name, known in DTYPES.items():
        if known == dtype:
            return name
    raise CheckpointError(f"A model can be loaded as {' or '.join(DTYPES)}, not as {dtype}.")
