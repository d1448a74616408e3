"""Boosting trees on the device: one array for all, written piece by piece beside running steps.

Nothing here waits for the device. Graphs that were captured before a tree came can read it: they refer to the
arrays, whose addresses never change.
"""

from __future__ import annotations

import torch
from torch import Tensor

from gpu_worker.boosting.tree import PhraseTree
from gpu_worker.kernels.reference.boosting_tree_reference import SlotTrees


class CudaTrees:
    """A `TreeMemory`.

    num_words: size of the memory of all trees, in int32.
    node_SM: states of slots in their trees, on the device.
    """

    def __init__(self, num_words: int, node_SM: Tensor) -> None:
        self.num_words = num_words
        self._device = node_SM.device
        self._slots = SlotTrees(
            words_W=torch.zeros(num_words, dtype=torch.int32, device=self._device),
            base_SM=torch.full_like(node_SM, -1),
            node_SM=node_SM,
        )

    @property
    def of_slots(self) -> SlotTrees | None:
        """Return the arrays that the decoding kernel reads; None where there is no memory for trees."""
        return self._slots if self.num_words else None

    def prepare(self, tree: PhraseTree) -> object:
        """Return the tree's words in pinned memory, from which the device copies directly."""
        words_W = torch.from_numpy(tree.words)
        if self._device.type != "cuda":
            return words_W
        # A new thread's current device is the first one, which may be another worker's.
        with torch.cuda.device(self._device):
            return words_W.pin_memory()

    @torch.inference_mode()
    def put(self, at: int, prepared: object) -> None:
        """See `TreeMemory`. The allocator keeps pinned memory until the copy is done."""
        assert isinstance(prepared, Tensor)
        self._slots.words_W[at : at + len(prepared)].copy_(prepared, non_blocking=True)

    def drop(self, at: int) -> None:
        """Do nothing: an unused tree does no harm."""

    @torch.inference_mode()
    def use(self, slot: int, at: int, num_nodes: int, *, anew: bool) -> None:
        """See `TreeMemory`."""
        self._slots.base_SM[slot, 0] = at
        self._slots.node_SM[slot, :1].clamp_(max=0 if anew else max(0, num_nodes - 1))

    @torch.inference_mode()
    def use_for_all(self, at: int) -> None:
        """See `TreeMemory`."""
        self._slots.base_SM[:, 1] = at
