"""Boosting trees as a part of the decoding kernel (Triton functions, called from `greedy_decode`).

The score of a token in a state is the root's score plus the state's back-off weight, except for the few
tokens with an arc at a node before the root. So the kernel reads the root's scores from the tree, and keeps
the differences for each row and tree: V floats, of which the last, in the place of the blank, is the back-off
weight. Only these few are written when a token is emitted.

Only a row that emits a token needs scores. So the decoding kernel keeps the logits of rows with trees, and
`best_token` adds the scores to them in the few iterations in which such a row emits: within the product, they
would take registers in every iteration.

A block of rows walks its trees together: each row goes from its node over the fail nodes to the root, where
it waits for the others. The layout of a tree is in `gpu_worker.boosting.tree`; the results are those of
`tree_scores` and `next_node` in `boosting_tree_reference`.

Arguments of all functions: `words` and `floats` are the same array, which holds all trees. `base` [S, 2] are
the positions of a slot's two trees, its own and the shared one; `node` [S, 2] are its states in them.
`scores` [B, 2, V] are the differences from the root; `logits` [B, V] are those of the present iteration.
"""

# mypy: disable-error-code="untyped-decorator"

from __future__ import annotations

import triton
import triton.language as tl

# Marks a token that has the root's score; below every score of a tree.
_UNSET = tl.constexpr(-1e30)
_IS_SET = tl.constexpr(-1e29)


@triton.jit
def is_boosted(base_ptr, slot, mask):  # type: ignore[no-untyped-def]
    # The rows that have a tree.
    own = tl.load(base_ptr + 2 * slot, mask=mask, other=-1)
    everybodys = tl.load(base_ptr + 2 * slot + 1, mask=mask, other=-1)
    return (own >= 0) | (everybodys >= 0)


@triton.jit
def _enter(  # type: ignore[no-untyped-def]
    words_ptr,
    floats_ptr,
    row_ptrs,
    base,
    node,
    entering,
    V: tl.constexpr,
    BLOCK_ARCS: tl.constexpr,
):
    # Write the differences from the root for rows that are `entering` a state; none are written yet.
    backoff = tl.zeros_like(base).to(tl.float32)
    walking = entering & (node != 0)
    while tl.max(walking.to(tl.int32), axis=0) > 0:
        head = base + 2 * (V - 1) + 4 * node
        arcs = base + tl.load(words_ptr + head, mask=walking, other=0)
        count = tl.load(words_ptr + head + 1, mask=walking, other=0)
        fail = tl.load(words_ptr + head + 2, mask=walking, other=0)
        given_back = tl.load(floats_ptr + head + 3, mask=walking, other=0.0)
        most = tl.max(count, axis=0)
        for first in range(0, most, BLOCK_ARCS):
            number = first + tl.arange(0, BLOCK_ARCS)
            mask = number[None, :] < count[:, None]
            arc = arcs[:, None] + 3 * number[None, :]
            token = tl.load(words_ptr + arc, mask=mask, other=0)
            score = tl.load(floats_ptr + arc + 1, mask=mask, other=0.0)
            cell = row_ptrs[:, None] + token
            # The first node on the way with an arc for the token determines its score.
            known = tl.load(cell, mask=mask, other=0.0)
            tl.store(cell, backoff[:, None] + score, mask=mask & (known < _IS_SET))
        tl.debug_barrier()
        backoff += given_back
        node = tl.where(walking, fail, 0)
        walking = walking & (node != 0)
    tl.store(row_ptrs + (V - 1), backoff, mask=entering)


@triton.jit
def _leave(  # type: ignore[no-untyped-def]
    words_ptr,
    row_ptrs,
    base,
    node,
    symbol,
    leaving,
    V: tl.constexpr,
    BLOCK_ARCS: tl.constexpr,
):
    # Return the states after a symbol for rows that are `leaving`; clear their differences from the root.
    begun = tl.load(words_ptr + base + (V - 1) + symbol, mask=leaving, other=0)
    found = tl.zeros_like(node)
    walking = leaving & (node != 0)
    while tl.max(walking.to(tl.int32), axis=0) > 0:
        head = base + 2 * (V - 1) + 4 * node
        arcs = base + tl.load(words_ptr + head, mask=walking, other=0)
        count = tl.load(words_ptr + head + 1, mask=walking, other=0)
        fail = tl.load(words_ptr + head + 2, mask=walking, other=0)
        most = tl.max(count, axis=0)
        for first in range(0, most, BLOCK_ARCS):
            number = first + tl.arange(0, BLOCK_ARCS)
            mask = number[None, :] < count[:, None]
            arc = arcs[:, None] + 3 * number[None, :]
            token = tl.load(words_ptr + arc, mask=mask, other=0)
            following = tl.load(words_ptr + arc + 2, mask=mask, other=0)
            tl.store(row_ptrs[:, None] + token, tl.full((1, 1), _UNSET, tl.float32), mask=mask)
            # No arc leads to the root, so 0 means no arc.
            hit = tl.max(tl.where(mask & (token == symbol[:, None]), following, 0), axis=1)
            found = tl.where(found == 0, hit, found)
        node = tl.where(walking, fail, 0)
        walking = walking & (node != 0)
    return tl.where(found == 0, begun, found)


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
    # Write the differences from the root for the present states of the slots.
    for which in range(2):
        base = tl.load(base_ptr + 2 * slot + which, mask=mask, other=-1)
        has_tree = base >= 0
        if tl.max(has_tree.to(tl.int32), axis=0) > 0:
            row_ptrs = scores_ptr + (2 * row64 + which) * V
            node = tl.load(node_ptr + 2 * slot + which, mask=has_tree, other=0)
            for first in range(0, V, BLOCK_V):
                v = first + tl.arange(0, BLOCK_V)
                cell_mask = has_tree[:, None] & (v < V)[None, :]
                unset = tl.full((1, BLOCK_V), _UNSET, tl.float32)
                tl.store(row_ptrs[:, None] + v[None, :], unset, mask=cell_mask)
            tl.debug_barrier()
            _enter(words_ptr, floats_ptr, row_ptrs, base, node, has_tree, V, BLOCK_ARCS)
    tl.debug_barrier()


@triton.jit
def best_token(  # type: ignore[no-untyped-def]
    floats_ptr,
    base_ptr,
    scores_ptr,
    logits_ptr,
    slot,
    row64,
    mask,
    V: tl.constexpr,
    BLANK: tl.constexpr,
    BLOCK_V: tl.constexpr,
):
    # Return for each row the token whose logit and scores have the highest sum; the blank is left out.
    best = tl.full((mask.shape[0],), -1e30, dtype=tl.float32)
    token = tl.zeros((mask.shape[0],), dtype=tl.int32)
    # Offsets in 32 bits take half the registers.
    row = (V * row64).to(tl.int32)
    own = tl.load(base_ptr + 2 * slot, mask=mask, other=-1)
    everybodys = tl.load(base_ptr + 2 * slot + 1, mask=mask, other=-1)
    own_backoff = tl.load(scores_ptr + (2 * row + (V - 1)), mask=own >= 0, other=0.0)
    everybodys_backoff = tl.load(scores_ptr + (2 * row + (2 * V - 1)), mask=everybodys >= 0, other=0.0)
    # Most servers have no phrases for all streams.
    num_trees = 1 + tl.max((everybodys >= 0).to(tl.int32), axis=0)
    for first in range(0, V, BLOCK_V):
        v = first + tl.arange(0, BLOCK_V)
        is_token = (v < BLANK)[None, :]
        logits = tl.load(logits_ptr + (row[:, None] + v[None, :]), mask=mask[:, None] & is_token, other=-1e30)
        scores = tl.zeros((mask.shape[0], BLOCK_V), dtype=tl.float32)
        for which in range(num_trees):
            base = tl.where(which == 0, own, everybodys)
            backoff = tl.where(which == 0, own_backoff, everybodys_backoff)
            cell_mask = (base >= 0)[:, None] & is_token
            differs = tl.load(
                scores_ptr + which * V + (2 * row[:, None] + v[None, :]), mask=cell_mask, other=0.0
            )
            roots = tl.load(floats_ptr + (base[:, None] + v[None, :]), mask=cell_mask, other=0.0)
            scores += tl.where(differs < _IS_SET, backoff[:, None] + roots, differs)
        tile_best, tile_token = tl.max(logits + scores, axis=1, return_indices=True)
        token = tl.where(tile_best > best, first + tile_token, token)
        best = tl.maximum(best, tile_best)
    return token


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
    BLOCK_ARCS: tl.constexpr,
):
    # Advance each row by a token. Other threads load than store, hence the barriers.
    tl.debug_barrier()
    for which in range(2):
        base = tl.load(base_ptr + 2 * slot + which, mask=mask, other=-1)
        has_tree = base >= 0
        if tl.max(has_tree.to(tl.int32), axis=0) > 0:
            row_ptrs = scores_ptr + (2 * row64 + which) * V
            node_at = node_ptr + 2 * slot + which
            node = tl.load(node_at, mask=has_tree, other=0)
            node = _leave(words_ptr, row_ptrs, base, node, symbol, has_tree, V, BLOCK_ARCS)
            tl.debug_barrier()
            tl.store(node_at, node, mask=has_tree)
            _enter(words_ptr, floats_ptr, row_ptrs, base, node, has_tree, V, BLOCK_ARCS)
    tl.debug_barrier()
