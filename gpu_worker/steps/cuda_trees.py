"""Boosting trees on the device: one array for all, written piece by piece beside running steps.

Nothing here waits for the device. Graphs that were captured before a tree came can read it: they refer to the
arrays, whose addresses never change.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from functools import partial
from typing import Final

import torch
from torch import Tensor

from gpu_worker.boosting.tree import PhraseTree
from gpu_worker.kernels.reference.boosting_tree_reference import SlotTrees

# Words of pinned memory through which trees go to the device: some 230 lists of 100 phrases in one step.
_STAGING_WORDS: Final = 1 << 20

IsOver = Callable[[], bool]


class Staging:
    """Pinned memory through which words go to the device, used round and round.

    To pin memory takes the driver long, and may keep other calls and running steps waiting, so it is done
    once. A part is written again only when its copy is over.

    Args:
        words_W: the memory, int32.
        mark: marks the device's queue behind a copy; returns whether the copy is over.
    """

    def __init__(self, words_W: Tensor, mark: Callable[[], IsOver]) -> None:
        self._words_W = words_W
        self._mark = mark
        # Words since the memory was last free. Copies may read those from `begin` to `end`; `_copies` has
        # their ends and marks.
        self._begin = self._end = 0
        self._copies: deque[tuple[int, IsOver]] = deque()

    def copy(self, words_W: Tensor, to_W: Tensor) -> None:
        """Queue a copy of `words_W` to the device; `words_W` may change at once."""
        staged_W = self._take(len(words_W))
        if staged_W is None:
            # Too long, or too many at once. The allocator keeps this memory until the copy is over.
            to_W.copy_(_pinned(words_W, to_W.device), non_blocking=True)
            return
        to_W.copy_(staged_W.copy_(words_W), non_blocking=True)
        self._copies.append((self._end, self._mark()))

    def _take(self, num_words: int) -> Tensor | None:
        while self._copies and self._copies[0][1]():
            self._begin, _ = self._copies.popleft()
        if not self._copies:
            self._begin = self._end = 0
        size = len(self._words_W)
        at = self._end % size if size else 0
        # A part does not go on over the end of the memory.
        end = self._end + num_words + (size - at if at + num_words > size else 0)
        if num_words > size or end - self._begin > size:
            return None
        self._end = end
        return self._words_W[(end - num_words) % size :][:num_words]


# The current device of a thread is the first one, which may be another worker's.
def _pinned(words_W: Tensor, device: torch.device) -> Tensor:
    if device.type != "cuda":
        return words_W
    with torch.cuda.device(device):
        return words_W.pin_memory()


def _mark(device: torch.device) -> IsOver:
    event = torch.cuda.Event()  # type: ignore[no-untyped-call]
    event.record(torch.cuda.current_stream(device))
    return event.query


class CudaTrees:
    """A `TreeMemory`.

    num_words: size of the memory of all trees, in int32.
    node_SM: states of slots in their trees, on the device.
    """

    def __init__(self, num_words: int, node_SM: Tensor) -> None:
        self.num_words = num_words
        device = node_SM.device
        on_cuda = device.type == "cuda"
        staging_W = torch.empty(
            min(num_words, _STAGING_WORDS) if on_cuda else 0, dtype=torch.int32, pin_memory=on_cuda
        )
        self._staging = Staging(staging_W, partial(_mark, device))
        self._slots = SlotTrees(
            words_W=torch.zeros(num_words, dtype=torch.int32, device=device),
            base_SM=torch.full_like(node_SM, -1),
            node_SM=node_SM,
        )

    @property
    def of_slots(self) -> SlotTrees | None:
        """Return the arrays that the decoding kernel reads; None where there is no memory for trees."""
        return self._slots if self.num_words else None

    def prepare(self, tree: PhraseTree) -> object:
        """Return the tree's words."""
        return torch.from_numpy(tree.words)

    @torch.inference_mode()
    def put(self, at: int, prepared: object) -> None:
        """See `TreeMemory`."""
        assert isinstance(prepared, Tensor)
        self._staging.copy(prepared, self._slots.words_W[at : at + len(prepared)])

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
