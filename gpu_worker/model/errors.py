"""Errors of finding, reading and using a model."""

from __future__ import annotations

from common.errors import ModelError

__all__ = ["CheckpointError", "HubError", "ModelConfigError", "ModelError", "TokenizerError"]


class ModelConfigError(ModelError):
    """A `model_config.yaml` asks for something that this implementation does not compute."""


class CheckpointError(ModelError):
    """A checkpoint is truncated, of another class, or not the shape its config says."""


class TokenizerError(ModelError):
    """A SentencePiece model cannot be read or does not fit its checkpoint."""


class HubError(ModelError):
    """A model cannot be found on or fetched from the hub."""
