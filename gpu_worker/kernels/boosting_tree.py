"""Boosting trees as a part of the decoding kernel (Triton functions, called from `greedy_decode`).

A block of rows walks its trees together: each row from its node over the fail nodes to the root, where it
waits for the others.  Layout of a tree: `gpu_worker.boosting.tree`; what is computed: `tree_scores` and
`next_node` of the reference, `boosting_tree_reference`.
"""

# mypy: disable-error-code="untyped-decorator"

from __future__ import annotations

import triton
import triton.language as tl

# Below every score that a tree can give: a token that no node of the way has had an arc for yet.
_UNSET = tl.constexpr(-1e29)


@triton.jit
def tree_scores(  # type: ignore[no-untyped-def]
    words_ptr,
    floats_ptr,
    scores_rows,
    base,
    node,
    looking,
    V: tl.constexpr,
    BLOCK_V: tl.constexpr,
    BLOCK_ARCS: tl.constexpr,
):
    # Writes what each token scores in the states of rows that are `looking`, V floats a row.
    begins = looking
    for first in range(0, V, BLOCK_V):
        v = first + tl.arange(0, BLOCK_V)
        mask = begins[:, None] & (v < V)[None, :]
        tl.store(scores_rows[:, None] + v[None, :], tl.full((1, BLOCK_V), -1e30, tl.float32), mask=mask)
    tl.debug_barrier()
    backoff = tl.zeros_like(base).to(tl.float32)
    while tl.max(looking.to(tl.int32), axis=0) > 0:
        head = base + 4 * node
        arcs = base + tl.load(words_ptr + head, mask=looking, other=0)
        count = tl.load(words_ptr + head + 1, mask=looking, other=0)
        most = tl.max(count, axis=0)
        for first in range(0, most, BLOCK_ARCS):
            number = first + tl.arange(0, BLOCK_ARCS)
            mask = looking[:, None] & (number[None, :] < count[:, None])
            arc = arcs[:, None] + 3 * number[None, :]
            token = tl.load(words_ptr + arc, mask=mask, other=0)
            score = tl.load(floats_ptr + arc + 1, mask=mask, other=0.0)
            cell = scores_rows[:, None] + token
            # The first node of the way that has an arc for a token decides.
            known = tl.load(cell, mask=mask, other=0.0)
            tl.store(cell, backoff[:, None] + score, mask=mask & (known < _UNSET))
        tl.debug_barrier()
        looking = looking & (node != 0)
        backoff += tl.load(floats_ptr + head + 3, mask=looking, other=0.0)
        node = tl.load(words_ptr + head + 2, mask=looking, other=0)
    for first in range(0, V, BLOCK_V):
        v = first + tl.arange(0, BLOCK_V)
        mask = begins[:, None] & (v < V)[None, :]
        known = tl.load(scores_rows[:, None] + v[None, :], mask=mask, other=0.0)
        score = tl.where(known < _UNSET, backoff[:, None], known)
        tl.store(scores_rows[:, None] + v[None, :], score, mask=mask)
    tl.debug_barrier()


@triton.jit
def next_node(  # type: ignore[no-untyped-def]
    words_ptr,
    base,
    node,
    symbol,
    looking,
    BLOCK_ARCS: tl.constexpr,
):
    # The state after a symbol, of rows that are `looking`; that of the others as it is.
    found = tl.where(looking, 0, node)
    while tl.max(looking.to(tl.int32), axis=0) > 0:
        head = base + 4 * node
        arcs = base + tl.load(words_ptr + head, mask=looking, other=0)
        count = tl.load(words_ptr + head + 1, mask=looking, other=0)
        most = tl.max(count, axis=0)
        for first in range(0, most, BLOCK_ARCS):
            number = first + tl.arange(0, BLOCK_ARCS)
            mask = looking[:, None] & (number[None, :] < count[:, None])
            arc = arcs[:, None] + 3 * number[None, :]
            token = tl.load(words_ptr + arc, mask=mask, other=-1)
            following = tl.load(words_ptr + arc + 2, mask=mask, other=0)
            # No arc leads to the root, so 0 is none.
            hit = tl.max(tl.where(mask & (token == symbol[:, None]), following, 0), axis=1)
            found = tl.where(hit > 0, hit, found)
        fail = tl.load(words_ptr + head + 2, mask=looking, other=0)
        looking = looking & (found == 0) & (node != 0)
        node = tl.where(looking, fail, node)
    return found


# What follows is of a slot's two trees, its own and everybody's: their places in `base_ptr` and its states in
# `node_ptr`, [S, 2].  Scores of all symbols, [B, 2, V], are kept until the next symbol.


@triton.jit
def is_boosted(base_ptr, slot, mask):  # type: ignore[no-untyped-def]
    # Which rows have a tree.
    own = tl.load(base_ptr + 2 * slot, mask=mask, other=-1)
    everybodys = tl.load(base_ptr + 2 * slot + 1, mask=mask, other=-1)
    return (own >= 0) | (everybodys >= 0)


@triton.jit
def begin_scores(  # type: ignore[no-untyped-def]
    words_ptr,
    floats_ptr,
    base_ptr,
    node_ptr,
    scores_ptr,
    slot,
    row64,
    mask,
    V: tl.constexpr,
    BLOCK_V: tl.constexpr,
    BLOCK_ARCS: tl.constexpr,
):
    # Scores in the states that slots were left in; whether any row has a tree.
    any_boosted = tl.max(is_boosted(base_ptr, slot, mask).to(tl.int32), axis=0) > 0
    if any_boosted:
        for which in tl.static_range(2):
            base = tl.load(base_ptr + 2 * slot + which, mask=mask, other=-1)
            looking = base >= 0
            node = tl.load(node_ptr + 2 * slot + which, mask=looking, other=0)
            rows = scores_ptr + (2 * row64 + which) * V
            tree_scores(words_ptr, floats_ptr, rows, base, node, looking, V, BLOCK_V, BLOCK_ARCS)
    return any_boosted


@triton.jit
def scores_of(base_ptr, scores_ptr, slot, row64, mask, v, v_mask, V: tl.constexpr):  # type: ignore[no-untyped-def]
    # What the trees of rows add to the logits of symbols `v`.
    own = mask & (tl.load(base_ptr + 2 * slot, mask=mask, other=-1) >= 0)
    everybodys = mask & (tl.load(base_ptr + 2 * slot + 1, mask=mask, other=-1) >= 0)
    at = scores_ptr + (2 * row64 * V)[:, None] + v[None, :]
    score = tl.load(at, mask=own[:, None] & v_mask[None, :], other=0.0)
    return score + tl.load(at + V, mask=everybodys[:, None] & v_mask[None, :], other=0.0)


@triton.jit
def advance_scores(  # type: ignore[no-untyped-def]
    words_ptr,
    floats_ptr,
    base_ptr,
    node_ptr,
    scores_ptr,
    slot,
    row64,
    symbol,
    mask,
    V: tl.constexpr,
    BLOCK_V: tl.constexpr,
    BLOCK_ARCS: tl.constexpr,
):
    # Move rows on by a symbol each.
    for which in tl.static_range(2):
        base = tl.load(base_ptr + 2 * slot + which, mask=mask, other=-1)
        looking = base >= 0
        node_at = node_ptr + 2 * slot + which
        node = tl.load(node_at, mask=looking, other=0)
        node = next_node(words_ptr, base, node, symbol, looking, BLOCK_ARCS)
        # Threads that load are others than those that store: some may still want the old node and scores.
        tl.debug_barrier()
        tl.store(node_at, node, mask=looking)
        rows = scores_ptr + (2 * row64 + which) * V
        tree_scores(words_ptr, floats_ptr, rows, base, node, looking, V, BLOCK_V, BLOCK_ARCS)
