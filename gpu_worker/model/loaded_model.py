"""A checkpoint in memory: config, tensors under NeMo's names, tokenizer.

Every source of a checkpoint calls `assemble`, which checks tensors and vocabulary against the config. This
module reads a folder (`model_config.yaml`, `*.safetensors`, `tokenizer.model`) and maps its tensors into
memory.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import torch
from safetensors import SafetensorError, safe_open

from gpu_worker.model.config import ModelConfig, read_model_config
from gpu_worker.model.errors import CheckpointError
from gpu_worker.model.loading.expected_tensors import expected_tensors
from gpu_worker.model.tokenizer import Tokenizer

CONFIG_NAME: Final = "model_config.yaml"
TOKENIZER_NAME: Final = "tokenizer.model"

# The mel front end is float32 in every compute type: log-mel in bf16 loses quiet speech.
FLOAT32_PREFIX: Final = "preprocessor."


@dataclass(frozen=True, slots=True)
class LoadedModel:
    """A checkpoint that is ready to build a model from.

    `weights` has exactly the tensors that the config requires, under NeMo's state-dict names, in
    `dtype` (the mel front end in float32) on `device`.  Tensors may be read-only memory maps: never
    write to them.  `source` names where the checkpoint came from, `revision` its hub commit, if any.
    """

    config: ModelConfig
    weights: Mapping[str, torch.Tensor]
    tokenizer: Tokenizer
    source: str
    revision: str | None
    dtype: torch.dtype
    device: torch.device

    @property
    def num_parameters(self) -> int:
        """Return the number of trained parameters, without the mel front end."""
        return sum(t.numel() for name, t in self.weights.items() if not name.startswith(FLOAT32_PREFIX))


def read_folder(
    folder: Path, *, dtype: torch.dtype = torch.float32, device: torch.device | str = "cpu"
) -> LoadedModel:
    """Read a folder of `model_config.yaml`, `*.safetensors` and `tokenizer.model`.

    Raises ModelConfigError, TokenizerError, CheckpointError.
    """
    files = sorted(folder.glob("*.safetensors"))
    missing = [name for name in (CONFIG_NAME, TOKENIZER_NAME) if not (folder / name).is_file()]
    if not files:
        missing.append("*.safetensors")
    if missing:
        raise CheckpointError(
            f"The model folder {folder} lacks {', '.join(missing)}; it must hold {CONFIG_NAME}, "
            f"{TOKENIZER_NAME} and one or more .safetensors files."
        )
    config = read_model_config(folder / CONFIG_NAME)
    tokenizer = Tokenizer.from_file(folder / TOKENIZER_NAME)
    weights: dict[str, torch.Tensor] = {}
    for file in files:
        weights.update(_map_safetensors(file))
    return assemble(config, weights, tokenizer, str(folder), dtype=dtype, device=device)


def assemble(
    config: ModelConfig,
    weights: Mapping[str, torch.Tensor],
    tokenizer: Tokenizer,
    source: str,
    *,
    revision: str | None = None,
    dtype: torch.dtype,
    device: torch.device | str,
) -> LoadedModel:
    """Check tensors and vocabulary against the config, and convert the tensors to `dtype` on `device`.

    Raises CheckpointError for a missing tensor, a wrong shape, a weight that is not finite, or a tokenizer of
    another size.
    """
    expected = expected_tensors(config)
    missing = [name for name in expected if name not in weights]
    if missing:
        raise CheckpointError(
            f"{source} lacks {len(missing)} of the {len(expected)} tensors that its config calls for, "
            f"among them {', '.join(missing[:3])}."
        )
    for name, shape in expected.items():
        found = tuple(weights[name].shape)
        if found != shape:
            raise CheckpointError(
                f"In {source} the tensor {name} has shape {list(found)}, but its config calls for "
                f"{list(shape)}."
            )
        if not weights[name].is_floating_point():
            raise CheckpointError(
                f"In {source} the tensor {name} is {weights[name].dtype}; a floating-point type is supported."
            )
    unknown = [name for name in weights if name not in expected and not _is_unused(name, config)]
    if unknown:
        raise CheckpointError(
            f"{source} has {len(unknown)} tensors that its config does not call for, among them "
            f"{', '.join(unknown[:3])}: it is another architecture than it says."
        )
    _check_vocabulary(config, tokenizer, source)
    target = torch.device(device)
    converted = {
        name: weights[name].to(
            device=target, dtype=torch.float32 if name.startswith(FLOAT32_PREFIX) else dtype
        )
        for name in expected
    }
    for name, tensor in converted.items():
        # One pass over each tensor, which is read for the first step anyway.
        if not all(bound.isfinite() for bound in tensor.aminmax()):
            raise CheckpointError(
                f"In {source} the tensor {name} has numbers that are infinite or no numbers: "
                "the checkpoint is damaged, or its training failed."
            )
    return LoadedModel(
        config=config,
        weights=converted,
        tokenizer=tokenizer,
        source=source,
        revision=revision,
        dtype=dtype,
        device=target,
    )


def _is_unused(name: str, config: ModelConfig) -> bool:
    """Return whether a tensor is used by training or by the CTC head of a hybrid model only."""
    if name.startswith(("loss.", "wer.", "spec_augmentation.")):
        return True
    return "Hybrid" in config.model_class and name.startswith(("ctc_decoder.", "ctc_wer.", "ctc_loss."))


def _check_vocabulary(config: ModelConfig, tokenizer: Tokenizer, source: str) -> None:
    if tokenizer.vocab_size != config.vocab_size:
        raise CheckpointError(
            f"The tokenizer of {source} has {tokenizer.vocab_size} pieces, but its config calls for a "
            f"vocabulary of {config.vocab_size}."
        )
    for name, own, of_config in (
        ("<EOU>", tokenizer.eou_id, config.eou_id),
        ("<EOB>", tokenizer.eob_id, config.eob_id),
    ):
        if own != of_config:
            raise CheckpointError(
                f"In {source} the token {name} is number {own} of the tokenizer, but {of_config} of the "
                "config."
            )


def _map_safetensors(path: Path) -> dict[str, torch.Tensor]:
    """Return the tensors of one file as memory maps."""
    try:
        with safe_open(path, framework="pt") as file:
            return {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    except (SafetensorError, OSError) as error:
        raise CheckpointError(f"{path} is not a safetensors file, or is truncated: {error}.") from error
