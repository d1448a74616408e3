"""Boosting trees of a lane's streams: the lane builds them, and the group writes them to the lane's arena."""

from __future__ import annotations

from collections.abc import Callable

from gpu_worker.boosting.tree import PhraseTree


class LaneTrees:
    """A `TreeMemory` over the socket: requests keep their order among the lane's flights.

    num_words: the lane's part of the arena, in int32. tell: sends a request (`LaneSteps.tell`).
    """

    def __init__(self, num_words: int, tell: Callable[..., None]) -> None:
        self.num_words = num_words
        self._tell = tell

    def prepare(self, tree: PhraseTree) -> object:
        """Return the tree: it is sent unchanged."""
        return tree

    def put(self, at: int, prepared: object) -> None:
        """Send a tree to its place."""
        assert isinstance(prepared, PhraseTree)
        self._tell({"what": "put", "at": at}, {"words": prepared.words.data.cast("B")})

    def drop(self, at: int) -> None:
        """Free a place."""
        self._tell({"what": "drop", "at": at})

    def use(self, slot: int, at: int, num_nodes: int, *, anew: bool) -> None:
        """Decode a slot with the tree at a place, or with none."""
        self._tell({"what": "use", "slot": slot, "at": at, "nodes": num_nodes, "anew": anew})

    def use_for_all(self, at: int) -> None:
        """Never called: the group handles the phrases of all streams."""
        raise AssertionError("a lane's phrases for all")
