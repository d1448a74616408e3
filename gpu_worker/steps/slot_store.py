"""What the steps of this package's own model remember of slots, on its device, and how it travels."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from gpu_worker.model.state import KVPages, SlotState, as_buffers, from_buffer
from gpu_worker.turn.vad import EXPORT_FLOATS, SileroVad

_VAD = "vad"


@dataclass(frozen=True, slots=True)
class SlotStore:
    """The model's state of slots, the pages of keys and values, and the speech detector's state."""

    state: SlotState
    pages: KVPages
    vad: SileroVad | None

    @torch.inference_mode()
    def export(
        self, slot: int, pages_N: NDArray[np.int64], offsets_N: NDArray[np.int64]
    ) -> dict[str, memoryview]:
        """See `Steps.export`."""
        tensors = self.state.export(slot) | self.pages.export(*self._where(pages_N, offsets_N))
        if self.vad is not None:
            tensors[_VAD] = self.vad.export_slot(slot)
        return as_buffers(tensors)

    @torch.inference_mode()
    def load(
        self,
        slot: int,
        pages_N: NDArray[np.int64],
        offsets_N: NDArray[np.int64],
        state: Mapping[str, memoryview],
    ) -> None:
        """See `Steps.load`."""
        self.state.load(slot, state)
        self.pages.load(*self._where(pages_N, offsets_N), state)
        if self.vad is not None:
            self.vad.import_slot(slot, from_buffer(_VAD, state.get(_VAD), torch.empty(EXPORT_FLOATS)))

    def _where(self, pages_N: NDArray[np.int64], offsets_N: NDArray[np.int64]) -> tuple[Tensor, Tensor]:
        device = self.state.tail_SZ.device
        return torch.from_numpy(pages_N).to(device), torch.from_numpy(offsets_N).to(device)
