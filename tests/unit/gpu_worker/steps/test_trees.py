"""Where the steps keep boosting trees: both kinds say the same of a slot."""

from __future__ import annotations

from collections import deque

import numpy as np
import torch

from gpu_worker.boosting.tree import PhraseTree
from gpu_worker.engine.phrases.tree_memory import NO_TREE
from gpu_worker.kernels.reference.boosting_tree_reference import next_node, tree_scores
from gpu_worker.steps.cuda_trees import CudaTrees, IsOver, Staging
from gpu_worker.steps.eager_trees import EagerTrees

NUM_TOKENS = 12
TREE = PhraseTree([([1, 2, 3], 1.0), ([2, 3, 4], 3.0), ([1, 2, 5], 2.0), ([7], 10.0)], NUM_TOKENS)


def test_the_words_of_a_tree_say_what_the_tree_says() -> None:
    trees = CudaTrees(1_000, torch.zeros(3, 2, dtype=torch.int32))
    trees.put(13, trees.prepare(TREE))
    slots = trees.of_slots
    assert slots is not None
    for node in range(TREE.num_nodes):
        scores = tree_scores(slots.words_W, 13, node, NUM_TOKENS)
        assert scores.tolist() == TREE.scores(node).tolist()
        for token in range(NUM_TOKENS):
            assert next_node(slots.words_W, 13, node, token, NUM_TOKENS) == TREE.following(node, token)


def test_a_slot_has_its_tree_from_the_root_or_where_it_was() -> None:
    for kind in (CudaTrees, EagerTrees):
        node_SM = torch.tensor([[5, 1], [5, 1], [99, 1]], dtype=torch.int32)
        trees = kind(1_000, node_SM)
        trees.put(0, trees.prepare(TREE))
        trees.use(0, 0, TREE.num_nodes, anew=True)
        trees.use(1, 0, TREE.num_nodes, anew=False)
        trees.use(2, 0, TREE.num_nodes, anew=False)
        assert node_SM[:2].tolist() == [[0, 1], [5, 1]]
        assert int(node_SM[2, 0]) < TREE.num_nodes, "of another tree: whatever it is, it is in this one"
        trees.use(1, NO_TREE, 0, anew=True)
        assert node_SM[1].tolist() == [0, 1]
        trees.drop(0)


def test_only_rows_with_trees_are_boosted() -> None:
    trees = EagerTrees(1_000, torch.zeros(3, 2, dtype=torch.int32))
    assert trees.rows(torch.tensor([0, 1])) is None
    trees.put(0, TREE)
    trees.use(2, 0, TREE.num_nodes, anew=True)
    assert trees.rows(torch.tensor([0, 1])) is None
    rows = trees.rows(torch.tensor([0, 2]))
    assert rows is not None
    logits = torch.zeros(2, NUM_TOKENS + 1)
    logits[:, 4] = 1.0
    assert rows.choose(logits, torch.tensor([4, 4])).tolist() == [4, 7]
    rows.advance(torch.tensor([True, True]), torch.tensor([4, 1]))
    trees.moved(torch.tensor([0, 2]), rows)
    assert rows.nodes_BM[:, 0].tolist() == [0, TREE.following(0, 1)]


def test_everybodys_tree_adds_to_a_slots_own() -> None:
    trees = EagerTrees(1_000, torch.zeros(2, 2, dtype=torch.int32))
    other = PhraseTree([([4], 9.0), ([7], 2.0)], NUM_TOKENS)
    trees.put(0, other)
    trees.use_for_all(0)
    trees.put(100, TREE)
    trees.use(1, 100, TREE.num_nodes, anew=True)
    rows = trees.rows(torch.tensor([0, 1]))
    assert rows is not None
    assert rows.choose(torch.zeros(2, NUM_TOKENS + 1), torch.tensor([0, 0])).tolist() == [4, 7]


class _Device:
    """Has copies in its queue, in their order. Each copy has a value of its own in all of its words."""

    def __init__(self, num_words: int) -> None:
        self.memory_W = torch.zeros(num_words, dtype=torch.int32)
        self._staging = Staging(self.memory_W, self._mark)
        self.num_marked = self.num_done = 0
        self.queued: deque[tuple[int, int]] = deque()

    def _mark(self) -> IsOver:
        self.num_marked = number = self.num_marked + 1
        return lambda: self.num_done >= number

    def copy(self, value: int, num_words: int) -> bool:
        """Queue a copy; return whether it reads the staging memory."""
        number, words_W = self.num_marked, torch.full((num_words,), value, dtype=torch.int32)
        to_W = torch.zeros_like(words_W)
        self._staging.copy(words_W, to_W)
        assert to_W.tolist() == words_W.tolist()
        if self.num_marked == number:
            return False
        self.queued.append((value, num_words))
        return True

    def work(self) -> None:
        """Finish the oldest copy."""
        self.queued.popleft()
        self.num_done += 1

    def check(self) -> None:
        """Assert that every copy that is not over still finds its words, in one piece."""
        for value, num_words in self.queued:
            at = (self.memory_W == value).nonzero().flatten().tolist()
            assert at == list(range(at[0], at[0] + num_words))


def test_no_tree_is_written_over_one_that_the_device_still_copies() -> None:
    rng, device, num_staged = np.random.default_rng(0), _Device(64), 0
    for value in range(1, 2_000):
        num_staged += device.copy(value, int(rng.integers(1, 30)))
        device.check()
        while device.queued and rng.random() < 0.5:
            device.work()
    assert 1_000 < num_staged < 1_999, "some found no room, as the device was behind"


def test_a_tree_that_finds_no_room_gets_memory_of_its_own() -> None:
    device = _Device(10)
    assert not device.copy(1, 11)
    assert device.copy(2, 10)
    assert not device.copy(3, 1)
    device.work()
    assert device.copy(4, 6)
    assert not device.copy(5, 5), "no part goes on over the end"
    assert device.copy(6, 4)
    device.check()
    device.work()
    assert device.copy(7, 6)
    device.check()
