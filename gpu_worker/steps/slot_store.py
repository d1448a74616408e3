"""The state of slots of this package's own model, on its device, with export and import."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from gpu_worker.engine.steps import Export, KeptFrames
from gpu_worker.model.state import HostCopy, KVPages, SlotState, from_buffer
from gpu_worker.turn.vad import EXPORT_FLOATS, SileroVad

_VAD = "vad"


@dataclass(frozen=True, slots=True)
class SlotStore:
    """The model's state of slots, the pages of keys and values, and the speech detector's state."""

    state: SlotState
    pages: KVPages
    vad: SileroVad | None

    @torch.inference_mode()
    def export(self, slot: int, kept: KeptFrames | None) -> Export:
        """See `Steps.export`."""
        rows = self.state.rows(slot, whole=kept is not None)
        if kept is not None:
            rows |= self.pages.rows(*self._where(kept))
        if self.vad is not None:
            rows[_VAD] = self.vad.export_slot(slot)
        return HostCopy(rows).buffers

    @torch.inference_mode()
    def load(self, slot: int, kept: KeptFrames | None, state: Mapping[str, memoryview]) -> None:
        """See `Steps.load`."""
        self.state.load(slot, state, whole=kept is not None)
        if kept is not None:
            self.pages.load(*self._where(kept), state)
        if self.vad is not None:
            self.vad.import_slot(slot, from_buffer(_VAD, state.get(_VAD), torch.empty(EXPORT_FLOATS)))

    def _where(self, kept: KeptFrames) -> tuple[Tensor, Tensor]:
        device = self.state.tail_SZ.device
        return torch.from_numpy(kept.pages_N).to(device), torch.from_numpy(kept.offsets_N).to(device)
