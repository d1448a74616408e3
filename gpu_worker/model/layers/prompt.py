"""Language prompt of multilingual checkpoints: a one-hot prompt beside each encoder frame, two layers.

The one-hot part of the first product is a row of its weights; it is added to the bias once per language.

Shape legend: B rows, T frames, D model width, Q prompts, S slots.

Source: NeMo `EncDecRNNTBPEModelWithPrompt` (`prompt_kernel`).
"""

from __future__ import annotations

from collections.abc import Mapping

import torch.nn.functional as F
from torch import Tensor

from gpu_worker.model.config import ModelConfig


class PromptKernel:
    """The prompt kernel: conditions encoder frames on each row's prompt."""

    def __init__(self, config: ModelConfig, weights: Mapping[str, Tensor]) -> None:
        first = weights["prompt_kernel.0.weight"]
        self._frames = first[:, : config.d_model].contiguous()
        self._prompts = first[:, config.d_model :].t() + weights["prompt_kernel.0.bias"]
        self._out = weights["prompt_kernel.2.weight"]
        self._out_bias = weights["prompt_kernel.2.bias"]

    def run(self, x_BTD: Tensor, prompt_B: Tensor) -> Tensor:
        """Condition every frame of a row on the row's prompt (int64 index)."""
        hidden = F.linear(x_BTD, self._frames) + self._prompts.index_select(0, prompt_B).unsqueeze(1)
        return F.linear(hidden.relu_(), self._out, self._out_bias)
