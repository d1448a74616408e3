"""Errors of finding, reading and using a model."""

from __future__ import annotations

from common.errors import ModelError

__all__ = ["CheckpointError", "HubError", "ModelConfigError", "ModelError", "TokenizerError"]


class ModelConfigError(ModelError):
    """A `model_config.yaml` has a setting that this implementation does not compute."""


class CheckpointError(ModelError):
    """A checkpoint is truncated, of an unsupported class, or of other shapes than its config states."""


class TokenizerError(ModelError):
    """A SentencePiece model cannot be read or does not fit its checkpoint."""


class HubError(ModelError):
    """A model cannot be found on or fetched from the hub."""
