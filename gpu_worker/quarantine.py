"""Suspects: streams whose owners died at one and the same audio, run alone in a worker process of their own.

The process is a worker like any other, with one slot, that is given the assignment and takes nothing
else. It hands the stream back once it is past the audio in question. If the process dies, the next
owner sees it in the record; after POISONOUS_DEATHS of them the stream is poison.
"""

from __future__ import annotations

import logging
import subprocess
import sys
import threading
from dataclasses import replace
from typing import Final

from common.claims import Claims
from common.entries import AssignmentEntry, WorkerId
from common.keys import Keys
from common.leases import WorkerLease
from common.redis import REDIS_ERROR, SyncClient
from common.settings import WorkerSettings, child_argv, child_environment

logger = logging.getLogger(__name__)

DEFAULT_MODULE: Final = "gpu_worker.quarantined"
# The process has so long to load its model; then others may take the stream.
_START_MS: Final = 120_000
_STOP_S: Final = 10.0


class Quarantine:
    """The quarantined process of a worker: one at a time, further suspects wait. For any thread.

    module: what the process runs, `python -m module FLAGS`.
    """

    def __init__(
        self, settings: WorkerSettings, claims: Claims, client: SyncClient, keys: Keys, module: str
    ) -> None:
        self._settings = settings
        self._claims = claims
        self._client = client
        self._keys = keys
        self._module = module
        self._lock = threading.Lock()
        self._process: subprocess.Popen[bytes] | None = None
        self._name = WorkerId("")
        self._count = 0
        self._stopped = False

    def take(self, entry: AssignmentEntry) -> None:
        """Give a suspect to a process of its own; one that has to wait is offered again by the sweep.

        Raises the client's errors.
        """
        with self._lock:
            if self._stopped or self._process is not None:
                return
            self._count += 1
            self._name = WorkerId(f"{self._settings.worker_id}-q{self._count}")
            # Its lease begins before it does: who dies in between is followed by another worker.
            lease = self._lease(self._name, _START_MS)
            lease.renew()
            if not self._claims.give(entry, self._name):
                lease.release()
                return
            logger.warning(
                "suspect goes to a process of its own: %s", self._name, extra={"stream_id": entry.stream}
            )
            settings = replace(
                self._settings, worker_id=self._name, worker_max_streams=1, drain_timeout_s=0.0
            )
            try:
                # Ends with its stdin, so never later than this process.
                self._process = subprocess.Popen(
                    [sys.executable, "-m", self._module, *child_argv(settings)],
                    stdin=subprocess.PIPE,
                    env=child_environment(settings),
                )
            except OSError:
                logger.exception("a quarantined process could not be started")
                lease.release()

    def look(self) -> None:
        """Notice that the process has ended: whatever it still owns goes on at once.

        Raises the client's errors.
        """
        with self._lock:
            if self._process is None or self._process.poll() is None:
                return
            status = self._process.returncode
            log = logger.info if status == 0 else logger.error
            log("quarantined process %s ended with status %d", self._name, status)
            self._lease(self._name, _START_MS).release()
            if self._process.stdin is not None:
                self._process.stdin.close()
            self._process = None

    def stop(self) -> None:
        """Let the process hand its stream over, and end."""
        with self._lock:
            self._stopped = True
            process = self._process
        if process is None or process.stdin is None:
            return
        process.stdin.close()
        try:
            process.wait(_STOP_S)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
        try:
            self.look()
        except (REDIS_ERROR, OSError) as error:
            logger.warning("the lease of a quarantined process will lapse: %s", error)

    def _lease(self, name: WorkerId, lease_ms: int) -> WorkerLease:
        return WorkerLease(self._client, self._keys, name, lease_ms)
