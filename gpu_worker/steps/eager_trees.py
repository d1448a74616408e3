"""Phrase boosting of the plain model's decoder: the trees of slots, and the boosted rows of a step.

Shape suffixes: B rows, V tokens without the blank, M trees of a row (its own and that of all streams).
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from gpu_worker.boosting.tree import PhraseTree
from gpu_worker.engine.phrases.tree_memory import NO_TREE

Trees = tuple[PhraseTree | None, PhraseTree | None]


class EagerTrees:
    """A `TreeMemory` of tree objects.

    num_words: most words of all trees together.
    node_SM: states of slots in their trees.
    """

    def __init__(self, num_words: int, node_SM: Tensor) -> None:
        self.num_words = num_words
        self._node_SM = node_SM
        self._trees: dict[int, PhraseTree] = {}
        self._of_slot: dict[int, PhraseTree] = {}
        self._for_all: PhraseTree | None = None

    def prepare(self, tree: PhraseTree) -> object:
        return tree

    def put(self, at: int, prepared: object) -> None:
        assert isinstance(prepared, PhraseTree)
        self._trees[at] = prepared

    def drop(self, at: int) -> None:
        del self._trees[at]

    @torch.inference_mode()
    def use(self, slot: int, at: int, num_nodes: int, *, anew: bool) -> None:
        if at == NO_TREE:
            self._of_slot.pop(slot, None)
        else:
            self._of_slot[slot] = self._trees[at]
        if anew or int(self._node_SM[slot, 0]) >= num_nodes:
            self._node_SM[slot, 0] = 0

    def use_for_all(self, at: int) -> None:
        self._for_all = self._trees[at]

    def rows(self, slots_B: Tensor) -> BoostedRows | None:
        """Return the trees of a call's rows; None if no row has one."""
        if not self._of_slot and self._for_all is None:
            return None
        trees_B = [(self._of_slot.get(slot), self._for_all) for slot in slots_B.tolist()]
        if self._for_all is None and not any(own is not None for own, _ in trees_B):
            return None
        return BoostedRows(trees_B, self._node_SM.index_select(0, slots_B))

    def moved(self, slots_B: Tensor, rows: BoostedRows | None) -> None:
        """Store the states in which the rows of a call ended."""
        if rows is not None:
            self._node_SM.index_copy_(0, slots_B, rows.nodes_BM)


class BoostedRows:
    """The boosted rows of one decoder call (a `Fusion` of its rounds).

    Args:
        trees_B: trees of each row.
        nodes_BM: their states, updated in place.
    """

    def __init__(self, trees_B: Sequence[Trees], nodes_BM: Tensor) -> None:
        self._trees_B = trees_B
        self.nodes_BM = nodes_BM
        num_tokens = next(tree.num_tokens for trees in trees_B for tree in trees if tree is not None)
        self._scores_BV = torch.zeros(len(trees_B), num_tokens)
        self._is_boosted_B = torch.tensor([any(tree is not None for tree in trees) for trees in trees_B])
        for row in range(len(trees_B)):
            self._score(row)

    def _score(self, row: int) -> None:
        total: NDArray[np.float32] | None = None
        for tree, node in zip(self._trees_B[row], self.nodes_BM[row].tolist(), strict=True):
            if tree is not None:
                scores = tree.scores(node)
                total = scores if total is None else total + scores
        if total is not None:
            self._scores_BV[row] = torch.from_numpy(total)

    def choose(self, logits_BV: Tensor, token_B: Tensor) -> Tensor:
        """Return the token to emit in each row that emits one; `token_B`: the best without phrases.

        logits_BV: logits with the blank, which is the last.
        """
        scores_BV = self._scores_BV
        boosted_B = (logits_BV[:, : scores_BV.shape[1]] + scores_BV).argmax(-1)
        return torch.where(self._is_boosted_B, boosted_B, token_B)

    def advance(self, emits_B: Tensor, token_B: Tensor) -> None:
        """Update the states of the rows that emitted a token."""
        for row in (emits_B & self._is_boosted_B).nonzero().flatten().tolist():
            token = int(token_B[row])
            for number, tree in enumerate(self._trees_B[row]):
                if tree is not None:
                    self.nodes_BM[row, number] = tree.following(int(self.nodes_BM[row, number]), token)
            self._score(row)
