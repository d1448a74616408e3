"""A part of the worker that is a thread: how it starts and ends."""

from __future__ import annotations

import threading
from abc import ABC, abstractmethod


class Part(ABC):
    """A thread that runs `_run`, which returns soon after `_stop` is set.

    name: name of the thread.
    """

    def __init__(self, name: str) -> None:
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, name=name, daemon=True)

    def start(self) -> None:
        """Start the thread."""
        self._thread.start()

    def request_stop(self) -> None:
        """Begin to end: what is under way is finished. A part that waits for something else wakes itself."""
        self._stop.set()

    def stop(self, timeout_s: float) -> bool:
        """End the thread; return False if it did not end in time."""
        self.request_stop()
        self._thread.join(timeout_s)
        return not self._thread.is_alive()

    @property
    def alive(self) -> bool:
        """Whether the thread runs."""
        return self._thread.is_alive()

    @abstractmethod
    def _run(self) -> None:
        """Run in the thread."""
