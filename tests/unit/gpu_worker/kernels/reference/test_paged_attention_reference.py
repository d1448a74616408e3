"""The paged reference against dense attention over a stream's whole history."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from gpu_worker.kernels.reference.paged_attention_reference import attention_geometry, paged_attention

HEADS, WIDTH = 3, 8


def dense(
    q: Tensor, k: Tensor, v: Tensor, pos: Tensor, u: Tensor, b: Tensor, chunk: int, left: int
) -> Tensor:
    """[T, H, D] queries, keys, values from frame 0 on; loops over everything, as written in the paper."""
    out = torch.zeros_like(q)
    for t in range(q.shape[0]):
        first = max(0, t // chunk * chunk - left)
        last = min(t // chunk * chunk + chunk, q.shape[0])
        for h in range(HEADS):
            scores = torch.stack(
                [
                    (q[t, h] + u[h]) @ k[s, h] + (q[t, h] + b[h]) @ pos[t - s + chunk - 1, h]
                    for s in range(first, last)
                ]
            )
            out[t, h] = (scores / math.sqrt(WIDTH)).softmax(0) @ v[first:last, h]
    return out


@pytest.mark.parametrize(
    ("chunk", "left", "page", "chunks_a_step"), [(1, 4, 3, 1), (2, 6, 4, 2), (3, 6, 12, 1), (4, 4, 1, 3)]
)
def test_streams_of_mixed_ages(chunk: int, left: int, page: int, chunks_a_step: int) -> None:
    generator = torch.Generator().manual_seed(chunk)

    def random(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator)

    width = chunk * chunks_a_step
    ring = -(-(left + width) // page)
    totals = [5 * width, 3 * width - 1, width, 7 * width + 1]
    births = [0, 2, 1, 0]
    rows = len(totals)
    k_pages, v_pages = (
        torch.zeros(rows * ring + 1, page, HEADS, WIDTH),
        torch.zeros(rows * ring + 1, page, HEADS, WIDTH),
    )
    table = torch.randperm(rows * ring, generator=generator).view(rows, ring).int()
    pos, u, b = random(left + 2 * chunk - 1, HEADS, WIDTH), random(HEADS, WIDTH), random(HEADS, WIDTH)
    q, k, v = ([random(total, HEADS, WIDTH) for total in totals] for _ in range(3))
    expected = [dense(q[i], k[i], v[i], pos, u, b, chunk, left) for i in range(rows)]
    done = [0] * rows
    for step in range(12):
        counts = [
            min(width, totals[i] - done[i]) if step >= births[i] and done[i] < totals[i] else 0
            for i in range(rows)
        ]
        if not any(counts):
            continue
        queries = random(rows, width, HEADS, WIDTH)
        for i, count in enumerate(counts):
            for t in range(done[i], done[i] + count):
                queries[i, t - done[i]] = q[i][t]
                where = int(table[i, t // page % ring])
                k_pages[where, t % page], v_pages[where, t % page] = k[i][t], v[i][t]
        out = paged_attention(
            queries, k_pages, v_pages, table, torch.tensor(done), torch.tensor(counts), pos, u, b,
            chunk_frames=chunk, left_frames=left,
        )  # fmt: skip
        for i, count in enumerate(counts):
            torch.testing.assert_close(
                out[i, :count], expected[i][done[i] : done[i] + count], atol=1e-5, rtol=1e-5
            )
            assert not out[i, count:].any(), "frames past a row's count are zero"
            done[i] += count
    assert done == totals


def test_pages_of_another_memory_order_and_a_given_geometry_change_nothing() -> None:
    k, v = torch.randn(7, 4, HEADS, WIDTH), torch.randn(7, 4, HEADS, WIDTH)
    q, pos = torch.randn(2, 2, HEADS, WIDTH), torch.randn(7, HEADS, WIDTH)
    u, b = torch.randn(HEADS, WIDTH), torch.randn(HEADS, WIDTH)
    table = torch.tensor([[5, 1], [3, 0]], dtype=torch.int32)
    start, counts = torch.tensor([8, 0]), torch.tensor([2, 2])
    plain = paged_attention(q, k, v, table, start, counts, pos, u, b, chunk_frames=2, left_frames=4)
    geometry = attention_geometry(2, 8, start, counts, chunk_frames=2, left_frames=4, all_valid=True)
    turned = [pages.transpose(1, 2).contiguous().transpose(1, 2) for pages in (k, v)]
    other = paged_attention(
        q, turned[0], turned[1], table, start, counts, pos, u, b,
        chunk_frames=2, left_frames=4, geometry=geometry,
    )  # fmt: skip
    torch.testing.assert_close(plain, other)
