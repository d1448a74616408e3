"""The book of phrase lists in use: each list has one boosting tree, which equal lists share.

A thread of its own builds the tree of a list. The tree gets a place in the steps' arena when the first stream
reaches the chunk from which it holds. The last stream that uses the list frees the place.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from concurrent.futures import Executor, Future, ThreadPoolExecutor
from typing import Final

from common.phrases import Phrase
from gpu_worker.boosting.tree import PhraseTree
from gpu_worker.engine.interface import DeviceLost, EngineError, PhrasesFull, UnsupportedOption
from gpu_worker.engine.phrases.tree_memory import NO_TREE, TreeMemory
from gpu_worker.engine.slots.arena import Arena

logger = logging.getLogger(__name__)

# Callers read a tree only once it is built, except for the tree of all streams when the engine starts.
_MAKE_TIMEOUT_S: Final = 60.0

PhraseList = tuple[Phrase, ...]
MakeTree = Callable[[PhraseList], PhraseTree]


def no_trees(_: PhraseList) -> PhraseTree:
    """Build no tree, for an engine that boosts nothing. Raises UnsupportedOption."""
    raise UnsupportedOption("Option 'phrases': this server's engine has no phrase boosting.")


class _Inline(Executor):
    """An executor that runs a call at once."""

    def submit(self, fn, /, *args, **kwargs):  # type: ignore[no-untyped-def]
        future: Future[object] = Future()
        try:
            future.set_result(fn(*args, **kwargs))
        except Exception as error:  # any exception is for the caller: the future carries it there
            future.set_exception(error)
        return future


class ListInUse:
    """One list and its tree; `users` streams hold it.

    future: the built tree, prepared for the arena; None once it is there, so that it is kept no longer.
    """

    __slots__ = ("at", "future", "num_nodes", "phrases", "users")

    def __init__(self, phrases: PhraseList, future: Future[tuple[int, int, object]]) -> None:
        self.phrases: Final = phrases
        self.future: Future[tuple[int, int, object]] | None = future
        self.users = 0
        self.at = NO_TREE
        self.num_nodes = 0

    @property
    def is_built(self) -> bool:
        """Whether `PhraseBook.place` need not wait."""
        return self.future is None or self.future.done()


class PhraseBook:
    """The lists in use. For the engine's thread.

    make_tree: builds the tree of a list; runs in another thread, raises UnsupportedOption.
    beside: whether trees are built in a thread of their own; else in the engine's.
    """

    def __init__(self, trees: TreeMemory, make_tree: MakeTree, *, beside: bool = False) -> None:
        self._trees = trees
        self._make_tree = make_tree
        self._arena = Arena(trees.num_words)
        self._executor: Executor = ThreadPoolExecutor(1, "phrases") if beside else _Inline()
        self._lists: dict[PhraseList, ListInUse] = {}
        self._wake: Callable[[], None] = lambda: None

    def wake_with(self, wake: Callable[[], None]) -> None:
        """Set the callback that is called, from another thread, when a tree is built."""
        self._wake = wake

    def hold(self, phrases: PhraseList) -> ListInUse:
        """Return a list for one more user, who calls `release` in the end."""
        entry = self._lists.get(phrases)
        if entry is None:
            future = self._executor.submit(self._make, phrases)
            entry = self._lists[phrases] = ListInUse(phrases, future)
            future.add_done_callback(lambda _: self._wake())
        entry.users += 1
        return entry

    def _make(self, phrases: PhraseList) -> tuple[int, int, object]:
        try:
            tree = self._make_tree(phrases)
            return len(tree.words), tree.num_nodes, self._trees.prepare(tree)
        except (EngineError, DeviceLost):
            raise
        except Exception as error:
            # A defect here ends the streams with this list, and not the engine.
            logger.exception("phrases could not be made into a tree")
            raise EngineError("The phrases could not be made into a tree.") from error

    def release(self, entry: ListInUse) -> None:
        """Subtract one user; the last one frees the place in the arena.

        A running step may still read it: the next write there comes after that step.
        """
        entry.users -= 1
        if entry.users:
            return
        del self._lists[entry.phrases]
        if entry.future is not None:
            entry.future.cancel()
        if entry.at != NO_TREE:
            self._arena.free(entry.at)
            self._trees.drop(entry.at)
            entry.at = NO_TREE

    def place(self, entry: ListInUse) -> None:
        """Put the built tree of a list into the arena.

        Raises UnsupportedOption for a phrase that the model cannot write, PhrasesFull where there is no room.
        """
        if entry.future is None:
            return
        num_words, num_nodes, prepared = entry.future.result(timeout=_MAKE_TIMEOUT_S)
        at = self._arena.allocate(num_words)
        if at is None:
            raise PhrasesFull(
                "The worker has no memory left for the phrases of another stream (--phrase-memory-mb)."
            )
        self._trees.put(at, prepared)
        entry.at, entry.num_nodes, entry.future = at, num_nodes, None

    @property
    def end(self) -> int:
        """Index of the first word after all trees in use."""
        return self._arena.end

    @property
    def num_lists(self) -> int:
        """Number of lists in use."""
        return len(self._lists)

    def check_integrity(self, num_users: int) -> None:
        """Raise AssertionError unless `num_users` streams and changes hold the lists in use."""
        self._arena.check_integrity()
        entries = self._lists.values()
        assert sum(entry.users for entry in entries) == num_users, "a list is held by nobody, or unheld"
        assert all(entry.users > 0 for entry in entries), "a list without users is kept"
        assert self._arena.num_taken == sum(entry.at != NO_TREE for entry in entries), "a place is lost"
