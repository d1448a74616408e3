"""Snapshots that a thread serializes, as in a worker, and drops."""

from __future__ import annotations

import queue
import threading

from gpu_worker.engine.interface import StreamSnapshot

# The bound of waiting snapshots, as in `gpu_worker.pipeline.snapshot_writer`.
_MOST = 8


class DroppedSnapshots:
    """Counts snapshots and their bytes; `stop` before they are read."""

    def __init__(self) -> None:
        self.taken = self.num_bytes = 0
        self._under_way: queue.Queue[StreamSnapshot | None] = queue.Queue()
        self._thread = threading.Thread(target=self._run, name="snapshots", daemon=True)
        self._thread.start()

    def has_room(self) -> bool:
        """Whether a worker would take another one now."""
        return self._under_way.qsize() < _MOST

    def put(self, snapshot: StreamSnapshot) -> None:
        """Take a snapshot; never waits."""
        self._under_way.put(snapshot)

    def stop(self) -> None:
        """End the thread after all snapshots that were put."""
        self._under_way.put(None)
        self._thread.join()

    def _run(self) -> None:
        while (snapshot := self._under_way.get()) is not None:
            self.num_bytes += len(snapshot.to_bytes())
            self.taken += 1
