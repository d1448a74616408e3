"""The part of the seam to a model that has to do with phrases: where boosting trees stand, and who uses them.

The engine says where in `num_words` integers a tree stands (`gpu_worker.engine.slots.arena`); the steps write
it there and keep each slot's state in it.
"""

from __future__ import annotations

from typing import Final, Protocol

from gpu_worker.boosting.tree import PhraseTree

# The place of no tree.
NO_TREE: Final = -1


class TreeMemory(Protocol):
    """Memory of steps for trees.  All calls come from the engine's thread, except `prepare`; none waits."""

    num_words: int
    """Room, in int32 (`PhraseTree.words`); 0 where phrases are not boosted."""

    def prepare(self, tree: PhraseTree) -> object:
        """Make a tree ready for `put`.  For any thread."""
        ...

    def put(self, at: int, prepared: object) -> None:
        """Write a tree, behind the steps launched before."""
        ...

    def drop(self, at: int) -> None:
        """No step launched from now on uses the tree there; earlier ones may."""
        ...

    def use(self, slot: int, at: int, num_nodes: int, *, anew: bool) -> None:
        """Decode a slot with the tree at a place, or NO_TREE, in steps launched from now on.

        anew: from its root; else from the state that `Steps.load` brought, if a tree of `num_nodes` has it.
        """
        ...

    def use_for_all(self, at: int) -> None:
        """Decode all slots with a tree besides their own.  Once, before the first step."""
        ...


class _NoTrees:
    """Memory of steps that boost no phrases: no tree ever comes."""

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
