"""Plain PyTorch of `boosting_tree.py`: what a boosting tree says in a state, read from its words.

Shape suffixes: W words of all trees, S slots, M trees of a slot, V symbols with the blank.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True, slots=True)
class SlotTrees:
    """Boosting trees of the slots (`gpu_worker.boosting.tree` has their layout).

    words_W: of all trees, int32.  base_SM: where the tree of a slot begins, -1 for none, int32; a slot's own
    and everybody's (M = 2).  node_SM: the slot's state in it, int32.
    """

    words_W: Tensor
    base_SM: Tensor
    node_SM: Tensor


def _arcs(words_W: Tensor, base: int, node: int) -> tuple[Tensor, Tensor, Tensor]:
    """Tokens, scores and next nodes of a node's arcs."""
    head = base + 4 * node
    begin = base + int(words_W[head])
    arcs = words_W[begin : begin + 3 * int(words_W[head + 1])].view(-1, 3)
    return arcs[:, 0].long(), arcs[:, 1].contiguous().view(torch.float32), arcs[:, 2]


def tree_scores(words_W: Tensor, base: int, node: int, num_symbols: int) -> Tensor:
    """Return what each symbol scores in a state, float32 [V]; what it says of the blank means nothing."""
    scores_V = torch.zeros(num_symbols, device=words_W.device)
    is_set_V = torch.zeros(num_symbols, dtype=torch.bool, device=words_W.device)
    backoff = torch.zeros(1, device=words_W.device)
    while True:
        tokens, scores, _ = _arcs(words_W, base, node)
        new = ~is_set_V[tokens]
        scores_V[tokens[new]] = backoff + scores[new]
        is_set_V[tokens] = True
        if not node:
            return torch.where(is_set_V, scores_V, backoff)
        backoff = backoff + words_W[base + 4 * node + 3].view(torch.float32)
        node = int(words_W[base + 4 * node + 2])


def next_node(words_W: Tensor, base: int, node: int, symbol: int) -> int:
    """Return the state after a symbol."""
    while True:
        tokens, _, following = _arcs(words_W, base, node)
        found = (tokens == symbol).nonzero()
        if len(found):
            return int(following[found[0, 0]])
        if not node:
            return 0
        node = int(words_W[base + 4 * node + 2])
