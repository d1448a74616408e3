"""Export of trained weights as a model folder for the server: float16 weights, config, tokenizer, card."""

from __future__ import annotations

import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Final

import torch
from safetensors.torch import save_file
from torch import Tensor

from gpu_worker.model.config import load_yaml, parse_model_config
from gpu_worker.model.loaded_model import (
    CONFIG_NAME,
    FLOAT32_PREFIX,
    TOKENIZER_NAME,
    LoadedModel,
    read_folder,
)
from gpu_worker.model.loading.expected_tensors import expected_tensors

CARD_NAME: Final = "MODEL_CARD.md"
WEIGHTS_NAME: Final = "tiny.safetensors"
# float16 ends at 65,504.
_LARGEST: Final = 6e4


class ExportError(Exception):
    """Weights that cannot be shipped."""


def export_model(
    folder: Path, weights: Mapping[str, Tensor], config_text: str, tokenizer: bytes, card: str
) -> LoadedModel:
    """Write a model folder and load it again through the server's own loader.

    Args:
        folder: folder to create; it must not exist.
        weights: tensors under NeMo's names; tensors that inference does not read, such as training heads, are
        left out.
        config_text: `model_config.yaml`.
        tokenizer: serialized SentencePiece model.
        card: text of the model card.

    Raises ExportError for weights that are not finite or too large for float16, ModelError if the loader
    refuses the folder. A refused folder is removed.
    """
    if folder.exists():
        raise ExportError(f"{folder} is there already; an export makes a new folder.")
    config = parse_model_config(load_yaml(config_text, CONFIG_NAME))
    names = expected_tensors(config)
    if missing := sorted(set(names) - set(weights)):
        raise ExportError(f"{len(missing)} tensors are missing, among them {missing[0]}.")
    for name in names:
        if not bool(torch.isfinite(weights[name]).all()) or float(weights[name].abs().max()) > _LARGEST:
            raise ExportError(f"{name} has numbers that float16 cannot hold.")
    folder.mkdir(parents=True)
    try:
        stored = {name: _stored(name, weights[name]) for name in names}
        metadata = {"format": "pt", "dtype": "fp16", "model": "EncDecRNNTBPEModel"}
        save_file(stored, folder / WEIGHTS_NAME, metadata=metadata)
        # The file is written with permissions for its owner alone, but a service is another user.
        (folder / WEIGHTS_NAME).chmod(0o644)
        (folder / CONFIG_NAME).write_text(config_text, encoding="utf-8")
        (folder / TOKENIZER_NAME).write_bytes(tokenizer)
        (folder / CARD_NAME).write_text(card, encoding="utf-8")
        return read_folder(folder)
    except BaseException:
        shutil.rmtree(folder)
        raise


def _stored(name: str, tensor: Tensor) -> Tensor:
    dtype = torch.float32 if name.startswith(FLOAT32_PREFIX) else torch.float16
    return tensor.detach().cpu().to(dtype).contiguous()
