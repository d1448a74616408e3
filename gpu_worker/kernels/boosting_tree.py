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
