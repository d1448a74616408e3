"""The interface to the steps' memory of boosting trees.

The engine assigns each tree a place in `num_words` integers (`gpu_worker.engine.slots.arena`). The steps
write the tree there and keep each slot's state in it.
"""

from __future__ import annotations

from typing import Final, Protocol

from gpu_worker.boosting.tree import PhraseTree

# The place of no tree.
NO_TREE: Final = -1


class TreeMemory(Protocol):
    """The steps' memory of trees. All calls come from the engine's thread, except `prepare`; none blocks."""

    num_words: int
    """Size of the memory, in int32 (`PhraseTree.words`); 0 where phrases are not boosted."""

    def prepare(self, tree: PhraseTree) -> object:
        """Prepare a tree for `put`. For any thread."""
        ...

    def put(self, at: int, prepared: object) -> None:
        """Write a tree, after the steps that were launched before."""
        ...

    def drop(self, at: int) -> None:
        """Note that no step launched from now on uses the tree there; running steps may."""
        ...

    def use(self, slot: int, at: int, num_nodes: int, *, anew: bool) -> None:
        """Decode a slot with the tree at a place, or NO_TREE, in steps launched from now on.

        anew: from its root; else from the state that `Steps.load` restored, if a tree of `num_nodes` has it.
        """
        ...

    def use_for_all(self, at: int) -> None:
        """Decode all slots with a tree besides their own. Called once, before the first step."""
        ...


class _NoTrees:
    """The memory of steps that boost no phrases: it has no trees."""

    num_words = 0

    def prepare(self, tree: PhraseTree) -> object:
        raise AssertionError("a tree for steps that have none")

    def put(self, at: int, prepared: object) -> None:
        raise AssertionError("a tree for steps that have none")

    def drop(self, at: int) -> None:
        raise AssertionError("a tree for steps that have none")

    def use(self, slot: int, at: int, num_nodes: int, *, anew: bool) -> None:
        raise AssertionError("a tree for steps that have none")

    def use_for_all(self, at: int) -> None:
        raise AssertionError("a tree for steps that have none")


NO_TREES: Final[TreeMemory] = _NoTrees()
