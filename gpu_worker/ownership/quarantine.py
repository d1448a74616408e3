"""The quarantined process: it runs suspects, which are streams whose owners died over the same audio.

The process is a worker that takes only the suspects that are assigned to it, a group at a time (suspects.py).
It serves one suspect after another. If it dies, the next owners see this in the records, and run the group in
smaller parts; a stream that alone ends POISONOUS_DEATHS of these processes is poison.

A machine or device may have no room for the process. If it does not get as far as to serve, again and again,
suspects are ended: they would wait for ever.
"""

from __future__ import annotations

import logging
import math
import os
import subprocess
import sys
import threading
import time
from dataclasses import replace
from typing import Final

from common.entries import AssignmentEntry, WorkerId
from common.presence.leases import WorkerLease
from common.redis.clients import REDIS_ERROR
from common.redis.keys import Keys
from common.redis.pipelined import SyncClient
from common.settings import WorkerSettings, child_argv, child_environment
from common.streams.claims import MAX_SUSPECTS, Claims

logger = logging.getLogger(__name__)

DEFAULT_MODULE: Final = "gpu_worker.quarantined"
# Time for the process to load its model; after it other workers may take its streams.
_START_MS: Final = 120_000
# Starts in a row of which none leads to a process that serves; then suspects are ended for a while.
MOST_FAILED_STARTS: Final = 8
_GIVE_UP_S: Final = 60.0


class Quarantine:
    """The quarantined process of a worker, started with the first suspect. For any thread.

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
        self._taken_until_ms = 0  # end of the lease that this worker took for the process
        self._num_failed = 0
        self._gives_up_until = -math.inf
        self._stopped = False

    def isolate(self, entry: AssignmentEntry) -> bool:
        """Assign a suspect to the process; the sweep offers a suspect that is not assigned again.

        Returns False where no process can be had: the caller ends the suspect. Raises the Redis client's
        errors.
        """
        with self._lock:
            if self._stopped:
                return True
            self._notice_end()
            if self._process is None:
                if self._gives_up():
                    return False
                self._start()
            if self._process is None or self._claims.give([entry], self._name) != [True]:
                return True
            logger.warning("suspect goes to quarantine: %s", self._name, extra={"stream_id": entry.stream})
            self._poke(self._process)
            return True

    def _gives_up(self) -> bool:
        now = time.monotonic()
        if self._num_failed >= MOST_FAILED_STARTS:
            logger.error("no process for suspects has started in %d attempts", self._num_failed)
            self._num_failed, self._gives_up_until = 0, now + _GIVE_UP_S
        return now < self._gives_up_until

    def look(self) -> None:
        """Check whether the process has ended: other workers then take its streams at once.

        Raises the Redis client's errors.
        """
        with self._lock:
            self._notice_end()

    def request_stop(self) -> None:
        """Assign no more suspects; the process hands its streams over, and ends."""
        with self._lock:
            self._stopped = True
            if self._process is not None and self._process.stdin is not None:
                self._process.stdin.close()

    def stop(self, timeout_s: float) -> None:
        """Wait for the end of the process, and kill it after a time."""
        self.request_stop()
        with self._lock:
            process = self._process
        if process is None:
            return
        try:
            process.wait(timeout_s)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
        try:
            self.look()
        except (REDIS_ERROR, OSError) as error:
            logger.warning("the lease of a quarantined process will lapse: %s", error)

    def _start(self) -> None:
        self._count += 1
        self._name = WorkerId(f"{self._settings.worker_id}-q{self._count}")
        # Its lease begins before the process does: if this worker dies in between, the streams of both are
        # taken over.
        lease = self._lease()
        lease.renew(begins=True)
        self._taken_until_ms = lease.end_ms()
        settings = replace(
            self._settings,
            worker_id=self._name,
            worker_max_streams=min(MAX_SUSPECTS, self._settings.worker_max_streams),
            drain_timeout_s=0.0,
            metrics_port=0,
            measure_capacity_s=0.0,
        )
        try:
            # The process ends with its stdin, so never later than this process.
            self._process = subprocess.Popen(
                [sys.executable, "-m", self._module, *child_argv(settings)],
                stdin=subprocess.PIPE,
                env=child_environment(settings),
            )
        except OSError:
            logger.exception("a quarantined process could not be started")
            self._num_failed += 1
            lease.release()

    def _poke(self, process: subprocess.Popen[bytes]) -> None:
        """Tell the process that there are suspects to take."""
        assert process.stdin is not None
        try:
            os.write(process.stdin.fileno(), b"\n")
        except OSError as error:
            logger.info("the quarantined process has ended: %s", error)

    def _notice_end(self) -> None:
        if self._process is None or self._process.poll() is None:
            return
        status = self._process.returncode
        log = logger.info if status == 0 else logger.error
        log("quarantined process %s ended with status %d", self._name, status)
        lease = self._lease()
        # A process that serves renews the lease, and releases it at most of its ends.
        has_served = lease.end_ms() != self._taken_until_ms
        lease.release()
        self._num_failed = 0 if has_served else self._num_failed + 1
        if self._process.stdin is not None:
            self._process.stdin.close()
        self._process = None

    def _lease(self) -> WorkerLease:
        return WorkerLease(self._client, self._keys, self._name, _START_MS)
