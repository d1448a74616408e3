"""Claims new streams into free slots, with one thread for each Redis server."""

from __future__ import annotations

import logging
import time
from typing import Final

from common.entries import AssignmentEntry
from common.redis.clients import REDIS_ERROR, RedisServers, SyncRedis, blocking_client
from common.redis.outages import OUTAGES
from common.streams.claims import Claims
from gpu_worker.ownership.owner import Owner
from gpu_worker.part import Part
from gpu_worker.pipeline.flow import StreamTable

logger = logging.getLogger(__name__)

# Streams of one read, or as many as there are shards: workers share a burst in such portions.
_MAX_CLAIMS: Final = 4
_BLOCK_MS: Final = 500
# A claimer reserves slots while it waits. It must not keep the last free slots from the claimers of other
# servers and from takeovers: if few are free, it reads without waiting, this often.
_LOOK_EVERY_S: Final = 0.025
_RETRY_S: Final = 0.2


class Claimer(Part):
    """Waits for new streams of one server while there are free slots. A thread."""

    def __init__(
        self,
        *,
        servers: RedisServers,
        server: int,
        redis: SyncRedis,
        claims: Claims,
        table: StreamTable,
        owner: Owner,
    ) -> None:
        super().__init__(f"claimer-{server}")
        self._client = blocking_client(servers, server, _BLOCK_MS)
        # The server's id of the waiting connection, while it waits.
        self._waiting: int | None = None
        self._redis = redis
        self._server = server
        self._shards = servers.shards_of_server(server)
        self._most = max(_MAX_CLAIMS, len(self._shards))
        self._plenty = (servers.num_servers + 1) * self._most
        self._claims = claims
        self._table = table
        self._owner = owner

    def stop(self, timeout_s: float) -> bool:
        """End the thread; return False if it did not end in time."""
        self.request_stop()
        deadline = time.monotonic() + timeout_s
        while self._thread.is_alive():
            self._stop_waiting()
            self._thread.join(_LOOK_EVERY_S)
            if time.monotonic() >= deadline:
                break
        return not self._thread.is_alive()

    def _stop_waiting(self) -> None:
        """End the wait: a worker that drains must not be assigned the streams that come meanwhile."""
        waiting = self._waiting
        if waiting is None:
            return
        try:
            self._redis.clients[self._server].execute_command("CLIENT", "UNBLOCK", waiting)
        except (REDIS_ERROR, OSError) as error:
            OUTAGES.log_retry(logger, "the wait for new streams goes on to its end: %s", error)

    def _run(self) -> None:
        while not self._stop.is_set():
            if not self._table.wait_for_slot(_BLOCK_MS / 1000):
                continue
            try:
                self._claim()
            except (REDIS_ERROR, OSError) as error:
                OUTAGES.log_retry(logger, "claiming failed, trying again: %s", error)
                self._stop.wait(_RETRY_S)
            except Exception:
                logger.exception("claiming failed")
                self._stop.wait(_RETRY_S)
        self._client.close()

    def _claim(self) -> None:
        scarce = self._table.num_free < self._plenty
        reserved = self._table.reserve(self._most)
        if reserved < len(self._shards):  # not all shards are read: the others are next
            scarce = True
            self._shards = (*self._shards[reserved:], *self._shards[:reserved])
        entries: list[AssignmentEntry] = []
        try:
            if reserved:
                block_ms = None if scarce else _BLOCK_MS
                # Read each time: a connection that was lost comes back under another id.
                self._waiting = None if scarce else int(self._client.execute_command("CLIENT", "ID"))
                if not self._stop.is_set():
                    entries = self._claims.wait(self._client, self._shards, reserved, block_ms)
        except BaseException:
            self._table.unreserve(reserved)
            raise
        finally:
            self._waiting = None
        self._owner.open(entries, reserved)
        if scarce and not entries:
            self._stop.wait(_LOOK_EVERY_S)
