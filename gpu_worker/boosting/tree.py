"""The boosting tree: phrases as a trie over tokens, with fail links for phrases that break off.

A token that continues a phrase has a score, which the decoder adds to the token's logit. If the hypothesis
leaves a phrase before its end, the score so far is taken back. To score a token in a state, the tree is
searched from the state along its fail nodes to the root for the first node with an arc for the token. The
score is that arc's score plus the back-off weights of the nodes that were passed. A token without an arc at
any of these nodes leads to the root.

Source: NeMo 3.0.0, `context_graph_universal.py` (trie, fail links, scores of shared nodes in the order of the
list) and `boosting_graph_batched.py` (back-off weights); tests/golden compares.

Every search ends at the root, and most arcs are the root's. So the root's arcs are a table indexed by token;
only the few arcs of the other nodes are searched.

Shape suffixes: N nodes (0 is the root), A arcs of the others, V tokens without the blank.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterable, Sequence
from math import log
from typing import Final

import numpy as np
from numpy.typing import NDArray

# Score of a phrase's later tokens relative to its first: NeMo's `depth_scaling`.
DEPTH_SCALING: Final = 2.0
# Numbers in `words` for a node (first arc, number of arcs, fail node, back-off weight) and for an arc (token,
# score, next node), in int32.
NODE_WORDS: Final = 4
ARC_WORDS: Final = 3
# Rows of scores of one tree that are cached for the plain decoder: 256 rows for a vocabulary of 1,024.
_CACHED_SCORES: Final = 256 * 1024


class PhraseTree:
    """A boosting tree. Immutable and for any thread, except `scores`, which is for the decoder's thread.

    words: the tree as the CUDA kernel reads it, int32, floats by their bits. First the root's arcs by token:
    the scores of all V tokens, then the nodes to which they lead (a score of 0 and the root where there is no
    arc). Then N nodes, then the arcs of all nodes but the root. Indices of arcs count from the first word.
    """

    def __init__(self, phrases: Iterable[tuple[Sequence[int], float]], num_tokens: int) -> None:
        """Build the tree. phrases: token ids and boost of each phrase; num_tokens: V."""
        trie = _Trie(phrases)
        order_N, fail_N = trie.linked()
        number_N = np.empty_like(order_N)
        number_N[order_N] = np.arange(len(order_N))
        sum_N = np.array(trie.sums)
        parent_N, token_N = number_N[trie.parents], np.array(trie.tokens)
        # The arcs of all nodes but the root, by node and token: the nodes to which they lead.
        to_A = np.lexsort((token_N, parent_N))
        to_A = to_A[parent_N[to_A] > 0]
        first_arc = 2 * num_tokens + NODE_WORDS * len(order_N)
        words = np.zeros(first_arc + ARC_WORDS * len(to_A), dtype=np.int32)
        words[2 * num_tokens] = first_arc
        self._have(words, num_tokens)
        begins = list(trie.following[0].values())
        self._root_score_V[token_N[begins]] = np.array(trie.scores)[begins]
        self._root_next_V[token_N[begins]] = number_N[begins]
        count_N = np.bincount(parent_N[to_A], minlength=len(order_N))
        self._table_N4[:, 0] = first_arc + ARC_WORDS * (np.cumsum(count_N) - count_N)
        self._table_N4[:, 1] = count_N
        self._table_N4[:, 2] = number_N[fail_N[order_N]]
        # The score of a complete phrase is not taken back.
        self._backoff_N[:] = np.where(trie.is_end, 0.0, sum_N[fail_N] - sum_N)[order_N]
        self._arcs_A3[:, 0] = token_N[to_A]
        self._score_A[:] = np.array(trie.scores)[to_A]
        self._arcs_A3[:, 2] = number_N[to_A]

    @classmethod
    def from_words(cls, words: NDArray[np.int32], num_tokens: int) -> PhraseTree:
        """Return the tree with these `words`. Raises ValueError where they are no valid tree."""
        tree = cls.__new__(cls)
        tree._have(words, num_tokens)
        num_nodes, arcs_A3 = tree.num_nodes, tree._arcs_A3
        first_N, count_N, fail_N = (tree._table_N4[:, column].astype(np.int64) for column in range(3))
        behind_nodes_N = first_N - tree._first_arc
        following = np.concatenate([tree._root_next_V, arcs_A3[:, 2]])
        if not (
            (behind_nodes_N >= 0).all()
            and (behind_nodes_N % ARC_WORDS == 0).all()
            and (count_N >= 0).all()
            and (first_N + ARC_WORDS * count_N <= len(words)).all()
            # A fail node is nearer to the root, so that every search ends there.
            and (fail_N >= 0).all()
            and (fail_N[1:] < np.arange(1, num_nodes)).all()
            and fail_N[0] == count_N[0] == 0
            and ((arcs_A3[:, 0] >= 0) & (arcs_A3[:, 0] < num_tokens)).all()
            and ((following >= 0) & (following < num_nodes)).all()
        ):
            raise ValueError("words that are no tree")
        return tree

    def _have(self, words: NDArray[np.int32], num_tokens: int) -> None:
        nodes = 2 * num_tokens
        # The root is the first node, and would have the first arc.
        first_arc = int(words[nodes]) if len(words) > nodes else 0
        num_nodes = (first_arc - nodes) // NODE_WORDS
        num_arcs = (len(words) - first_arc) // ARC_WORDS
        if not (
            num_nodes > 0
            and first_arc == nodes + NODE_WORDS * num_nodes
            and num_arcs >= 0
            and len(words) == first_arc + ARC_WORDS * num_arcs
        ):
            raise ValueError(f"{len(words)} words are no tree")
        self.words = words
        self.num_nodes = num_nodes
        self.num_tokens = num_tokens
        self._first_arc = first_arc
        self._root_score_V = words[:num_tokens].view(np.float32)
        self._root_next_V = words[num_tokens:nodes]
        self._table_N4 = words[nodes:first_arc].reshape(-1, NODE_WORDS)
        self._arcs_A3 = words[first_arc:].reshape(-1, ARC_WORDS)
        self._rows: OrderedDict[int, NDArray[np.float32]] = OrderedDict()

    @property
    def _backoff_N(self) -> NDArray[np.float32]:  # noqa: N802 - a shape suffix
        return self._table_N4[:, 3].view(np.float32)

    @property
    def _score_A(self) -> NDArray[np.float32]:  # noqa: N802 - a shape suffix
        return self._arcs_A3[:, 1].view(np.float32)

    def scores(self, node: int) -> NDArray[np.float32]:
        """Return the scores to add to the logits of all tokens in a state, [V]; not to be written to."""
        row = self._rows.get(node)
        if row is None:
            row = self._rows[node] = self._scores(node)
            if len(self._rows) > 1 and len(self._rows) * self.num_tokens > _CACHED_SCORES:
                self._rows.popitem(last=False)
        else:
            self._rows.move_to_end(node)
        return row

    def _scores(self, node: int) -> NDArray[np.float32]:
        way: list[tuple[int, np.float32]] = []
        given_back = np.float32(0)
        while node:
            way.append((node, given_back))
            given_back = given_back + self._backoff_N[node]
            node = int(self._table_N4[node, 2])
        row = self._root_score_V + given_back
        for at, backoff in reversed(way):
            arcs = self._arcs_of(at)
            row[self._arcs_A3[arcs, 0]] = self._score_A[arcs] + backoff
        return row

    def following(self, node: int, token: int) -> int:
        """Return the state after a token."""
        while node:
            arcs = self._arcs_of(node)
            found = np.flatnonzero(self._arcs_A3[arcs, 0] == token)
            if len(found):
                return int(self._arcs_A3[arcs.start + found[0], 2])
            node = int(self._table_N4[node, 2])
        return int(self._root_next_V[token])

    def _arcs_of(self, node: int) -> slice:
        begin, count = self._table_N4[node, :2].tolist()
        begin = (begin - self._first_arc) // ARC_WORDS
        return slice(begin, begin + count)


class _Trie:
    """Phrases as a trie; those with a common beginning share nodes, which keep the higher score.

    A node is an index into these lists, in the order of the phrases; 0 is the root. Lists of numbers, and not
    an object for each node: they are faster to build, and leave the garbage collector no cycles to find while
    it keeps the engine's thread waiting.
    """

    def __init__(self, phrases: Iterable[tuple[Sequence[int], float]]) -> None:
        self.following: Final[list[dict[int, int]]] = [{}]
        self.parents: Final = [0]
        self.tokens: Final = [0]
        self.scores: Final = [0.0]
        self.sums: Final = [0.0]
        self.is_end: Final = [False]
        for tokens, boost in phrases:
            node, total = 0, 0.0
            for depth, token in enumerate(tokens):
                child = self.following[node].get(token)
                if child is None:
                    score = boost * DEPTH_SCALING + log(depth + 1) if depth else boost
                    child = self._add(node, token, score)
                else:
                    score = self.scores[child] = max(boost, self.scores[child])
                total += score
                self.sums[child] = total
                node = child
            if node:
                self.is_end[node] = True

    def _add(self, parent: int, token: int, score: float) -> int:
        node = self.following[parent][token] = len(self.scores)
        self.following.append({})
        self.parents.append(parent)
        self.tokens.append(token)
        self.scores.append(score)
        self.sums.append(0.0)
        self.is_end.append(False)
        return node

    def linked(self) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """Return all nodes, nearest to the root first, and the fail node of each (Aho and Corasick 1975)."""
        following, order, fails = self.following, [0], [0] * len(self.following)
        for node in order:
            for token, child in following[node].items():
                order.append(child)
                if not node:
                    continue
                fail = fails[node]
                while fail and token not in following[fail]:
                    fail = fails[fail]
                fails[child] = following[fail].get(token, 0)
        return np.array(order, dtype=np.int64), np.array(fails, dtype=np.int64)
