"""Reference of `boosting_tree.py` in plain PyTorch: scores and next states, read from a tree's words.

Shape suffixes: W words of all trees, S slots, M trees of a slot, V tokens without the blank.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True, slots=True)
class SlotTrees:
    """Boosting trees of the slots (`gpu_worker.boosting.tree` has their layout).

    words_W: words of all trees, int32. base_SM: start of a slot's own and the shared tree (M = 2), -1 for no
    tree, int32. node_SM: the slot's state in each tree, int32.
    """

    words_W: Tensor
    base_SM: Tensor
    node_SM: Tensor


def _node(words_W: Tensor, base: int, node: int, num_tokens: int) -> tuple[Tensor, int, Tensor]:
    """Return the arcs (token, score, next node), fail node and back-off weight of a node, not the root."""
    head = base + 2 * num_tokens + 4 * node
    first, count, fail = words_W[head : head + 3].tolist()
    arcs_A3 = words_W[base + first : base + first + 3 * count].view(-1, 3)
    return arcs_A3, fail, words_W[head + 3].view(torch.float32)


def tree_scores(words_W: Tensor, base: int, node: int, num_tokens: int) -> Tensor:
    """Return the score of each token in a state, float32 [V]."""
    scores_V = torch.zeros(num_tokens, device=words_W.device)
    is_set_V = torch.zeros(num_tokens, dtype=torch.bool, device=words_W.device)
    backoff = torch.zeros((), device=words_W.device)
    while node:
        arcs_A3, node, given_back = _node(words_W, base, node, num_tokens)
        arcs_A3 = arcs_A3[~is_set_V[arcs_A3[:, 0].long()]]
        tokens = arcs_A3[:, 0].long()
        scores_V[tokens] = backoff + arcs_A3[:, 1].contiguous().view(torch.float32)
        is_set_V[tokens] = True
        backoff = backoff + given_back
    root_score_V = words_W[base : base + num_tokens].view(torch.float32)
    return torch.where(is_set_V, scores_V, backoff + root_score_V)


def next_node(words_W: Tensor, base: int, node: int, token: int, num_tokens: int) -> int:
    """Return the state after a token."""
    while node:
        arcs_A3, node, _ = _node(words_W, base, node, num_tokens)
        found = (arcs_A3[:, 0] == token).nonzero()
        if len(found):
            return int(arcs_A3[found[0, 0], 2])
    return int(words_W[base + num_tokens + token])
