"""Reader of NeMo's `.nemo` archive that needs no NeMo and runs no code of the archive.

The archive is a tar, in old files a gzipped one, of `model_config.yaml`, `model_weights.ckpt`
(a torch zip of a state dict) and the tokenizer's files (NeMo `core/connectors/save_restore_connector`).
Members are read in place and never unpacked to the disk, so their names cannot point at other files. The
state dict is unpickled with `weights_only=True`, which builds tensors only.
"""

from __future__ import annotations

import pickle
import tarfile
import zlib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any, Final, Literal, cast

import torch

from gpu_worker.model.config import ModelConfig, load_yaml, parse_model_config
from gpu_worker.model.errors import CheckpointError
from gpu_worker.model.tokenizer import Tokenizer

CONFIG_MEMBER: Final = "model_config.yaml"
WEIGHTS_MEMBER: Final = "model_weights.ckpt"
MEMBER_SCHEME: Final = "nemo:"
GZIP_MAGIC: Final = b"\x1f\x8b"
MAX_SMALL_MEMBER_BYTES: Final = 64 << 20
MAX_MEMBERS: Final = 10_000


@dataclass(frozen=True, slots=True)
class NemoArchive:
    """Contents of a `.nemo` file. `config_text` is the unchanged text of its `model_config.yaml`."""

    config: ModelConfig
    config_text: str
    weights: Mapping[str, torch.Tensor]
    tokenizer: Tokenizer


def read_nemo(path: Path) -> NemoArchive:
    """Read a `.nemo` file.

    Raises CheckpointError (not an archive, truncated, a member missing), ModelConfigError,
    TokenizerError.
    """
    try:
        with path.open("rb") as raw:
            mode: Literal["r:gz", "r:"] = "r:gz" if raw.read(2) == GZIP_MAGIC else "r:"
            raw.seek(0)
            with tarfile.open(fileobj=raw, mode=mode) as tar:
                members = _index(tar, path, has_plain_offsets=mode == "r:")
                return _read_members(tar, members, path)
    except (tarfile.TarError, EOFError, OSError, UnicodeDecodeError, zlib.error) as error:
        raise CheckpointError(
            f"{path} is not a whole .nemo archive (a tar of {CONFIG_MEMBER}, {WEIGHTS_MEMBER} and a "
            f"tokenizer); it may be truncated or damaged: {error}."
        ) from error


def _read_members(tar: tarfile.TarFile, members: Mapping[str, tarfile.TarInfo], path: Path) -> NemoArchive:
    config_text = _read_small(tar, members, CONFIG_MEMBER, path).decode("utf-8")
    values = load_yaml(config_text, f"{CONFIG_MEMBER} of {path}")
    config = parse_model_config(values)
    name = _tokenizer_member(values, members, path)
    tokenizer = Tokenizer(_read_small(tar, members, name, path), f"{name} of {path}")
    with _open(tar, members, WEIGHTS_MEMBER, path) as file:
        weights = _read_weights(file, path)
    return NemoArchive(config, config_text, weights, tokenizer)


def _index(tar: tarfile.TarFile, path: Path, *, has_plain_offsets: bool) -> dict[str, tarfile.TarInfo]:
    """Return the regular files by name; first check that the data of each is complete."""
    size = path.stat().st_size
    members: dict[str, tarfile.TarInfo] = {}
    for count, member in enumerate(tar):
        if count >= MAX_MEMBERS:
            raise CheckpointError(f"{path} has more than {MAX_MEMBERS} members; it is no .nemo archive.")
        missing = member.offset_data + member.size - size
        if has_plain_offsets and missing > 0:
            raise CheckpointError(
                f"{path} is truncated: its member {member.name} needs {missing} bytes more than the file has."
            )
        if member.isreg():
            members[member.name.removeprefix("./")] = member
    return members


def _open(tar: tarfile.TarFile, members: Mapping[str, tarfile.TarInfo], name: str, path: Path) -> IO[bytes]:
    member = members.get(name)
    file = tar.extractfile(member) if member is not None else None
    if file is None:
        raise CheckpointError(
            f"{path} has no member {name}; it has {', '.join(sorted(members)[:8]) or 'no regular file'}."
        )
    return file


def _read_small(tar: tarfile.TarFile, members: Mapping[str, tarfile.TarInfo], name: str, path: Path) -> bytes:
    with _open(tar, members, name, path) as file:
        data = file.read(MAX_SMALL_MEMBER_BYTES + 1)
    if len(data) > MAX_SMALL_MEMBER_BYTES:
        raise CheckpointError(f"The member {name} of {path} is larger than {MAX_SMALL_MEMBER_BYTES} bytes.")
    return data


def _tokenizer_member(values: Mapping[str, Any], members: Mapping[str, tarfile.TarInfo], path: Path) -> str:
    section = values.get("tokenizer")
    kind = section.get("type") if isinstance(section, Mapping) else None
    if not isinstance(section, Mapping) or kind != "bpe":
        raise CheckpointError(
            f"The tokenizer of {path} is of type {kind!r}; supported is 'bpe' (one SentencePiece model)."
        )
    named = section.get("model_path")
    if isinstance(named, str) and named.removeprefix(MEMBER_SCHEME) in members:
        return named.removeprefix(MEMBER_SCHEME)
    found = [name for name in members if name == "tokenizer.model" or name.endswith("_tokenizer.model")]
    if len(found) != 1:
        raise CheckpointError(f"{path} has {len(found)} tokenizer.model members and names {named!r}.")
    return found[0]


def _read_weights(file: IO[bytes], path: Path) -> dict[str, torch.Tensor]:
    try:
        state = torch.load(cast("Any", file), map_location="cpu", weights_only=True)
    except (RuntimeError, pickle.UnpicklingError, ValueError, KeyError) as error:
        raise CheckpointError(
            f"The member {WEIGHTS_MEMBER} of {path} is damaged, or holds more than tensors: {error}"
        ) from error
    if not isinstance(state, Mapping) or not all(
        isinstance(name, str) and isinstance(value, torch.Tensor) for name, value in state.items()
    ):
        raise CheckpointError(f"The member {WEIGHTS_MEMBER} of {path} is not a state dict of tensors.")
    return dict(state)
