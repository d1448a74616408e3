"""Copying of a hub model to a folder, for a host without network."""

from __future__ import annotations

import shutil
from pathlib import Path

from gpu_worker.model.errors import ModelError
from gpu_worker.model.loading.hub import HUB_IDS, Hub


def fetch(model: str, revision: str, output: Path | None) -> str:
    """Fetch a model of the hub and return a sentence on how to start a worker with it.

    model: a hub id, `small` or `large`.   output: a folder to make with copies of the files; without it the
    files are only in the hub's cache (`HF_HOME`), which workers of this host read.

    Raises HubError, ModelError and OSError.
    """
    repo_id = HUB_IDS.get(model, model)
    if "/" not in repo_id:
        raise ModelError(f"{model} is no model of the hub: small, large or owner/name is.")
    if output is not None and output.exists() and (not output.is_dir() or any(output.iterdir())):
        raise ModelError(f"{output} is there already; --output names a folder to make.")
    hub = Hub()
    found = hub.find(repo_id, hub.resolve(repo_id, revision))
    path = hub.fetch(found)
    named = f"{repo_id} at commit {found.commit}"
    if output is None:
        return f"{named} is in {hub.cache_dir}: --model {repo_id} --model-revision {found.commit}"
    output.mkdir(parents=True, exist_ok=True)
    # The cache holds links, but the folder must hold the files themselves.
    sources = [path] if path.suffix == ".nemo" else [path / name for name in found.files]
    for source in sources:
        shutil.copyfile(source, output / source.name)
    return f"{named} is in {output}: --model {output / path.name if path.suffix == '.nemo' else output}"
