"""Where the steps keep boosting trees: both kinds say the same of a slot."""

from __future__ import annotations

import torch

from gpu_worker.boosting.tree import PhraseTree
from gpu_worker.engine.phrases.tree_memory import NO_TREE
from gpu_worker.kernels.reference.boosting_tree_reference import next_node, tree_scores
from gpu_worker.steps.cuda_trees import CudaTrees
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
