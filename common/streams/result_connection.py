"""A worker's connection for results to one server, which may lose writes that it has confirmed.

A Redis that dies can lose its last writes: those that its append-only file, or the replica that replaces it,
did not have yet. A live owner would go on after results that the log has lost, and an ingress that did not
receive them (its subscription was cut, or a client resumes at it) could not follow. So written commands are
kept for a while. After each loss of the connection the last result of every stream is read, and missing
results are written again, under the same ids, before any others.
"""

from __future__ import annotations

import contextlib
import logging
import time
from collections import deque
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from itertools import islice
from typing import Any, Final

import redis.exceptions

from common.redis.clients import CONNECTION_ERRORS, is_passing
from common.redis.connect import RefusedConnection, pack
from common.redis.pipelined import SyncPipelinedConnection
from common.redis.scripts.streams import last_result
from common.streams.claims import OwnedStream

logger = logging.getLogger(__name__)

# Most bytes that are kept of one server, whatever their age: more than 2,000 streams write in three seconds.
_MAX_KEPT_BYTES: Final = 64 * 1024 * 1024
# Streams that are checked, and commands that are written again, in one round trip.
_AT_ONCE: Final = 512
# An idle connection is checked this often as long as commands are kept.
_LOOK_S: Final = 1.0
_PING: Final = pack(b"PING")


@dataclass(frozen=True, slots=True)
class _Moment:
    """The commands of one call. at: when Redis had confirmed them, on the monotonic clock (s).

    of: for each command its stream, and the number of the result that it adds, 0 for no result.
    once: indexes of commands that must not be repeated.
    """

    at: float
    commands: Sequence[bytes]
    of: Sequence[tuple[OwnedStream, int]]
    once: Collection[int]
    num_bytes: int


class ResultConnection:
    """Sends the commands of results; for one thread.

    keep_s: how long commands are kept after Redis took them; 0 for a Redis that loses all or nothing.
    """

    def __init__(self, connection: SyncPipelinedConnection, keep_s: float) -> None:
        self._connection = connection
        self._keep_s = keep_s
        self._kept: deque[_Moment] = deque()
        self._kept_bytes = 0
        self._called_at = 0.0
        self._forgetful = False  # the connection was lost, and Redis was not checked for lost writes
        self.num_restored = 0  # results that were written again

    def call(self, commands: Sequence[bytes]) -> list[Any]:
        """Send packed commands and return their replies, as `SyncPipelinedConnection.call` does.

        Results that Redis has lost are written first; a temporary refusal of these raises, too.
        """
        if not self._keep_s:
            return self._connection.call(commands)
        try:
            return self._call(commands)
        except redis.exceptions.ConnectionError as error:
            if isinstance(error, RefusedConnection):
                raise
            return self._call(commands)

    def keep(
        self, commands: Sequence[bytes], of: Sequence[tuple[OwnedStream, int]], once: Collection[int]
    ) -> None:
        """Keep commands that Redis has just taken; `_Moment` explains the arguments."""
        if not self._keep_s:
            return
        kept = self._kept
        size = sum(map(len, commands))
        kept.append(_Moment(self._called_at, commands, of, once, size))
        self._kept_bytes += size
        while self._kept_bytes > _MAX_KEPT_BYTES:
            self._kept_bytes -= kept.popleft().num_bytes

    def look(self) -> None:
        """Check whether an idle connection was lost, if commands are kept."""
        if self._kept and time.monotonic() - self._called_at >= _LOOK_S:
            with contextlib.suppress(*CONNECTION_ERRORS, redis.exceptions.ResponseError):
                self.call((_PING,))

    def _call(self, commands: Sequence[bytes]) -> list[Any]:
        if self._forgetful:
            self._restore()
            self._forgetful = False
        replies = self._send(commands)
        # Set only after a reply: while Redis is away, the kept commands do not age.
        self._called_at = now = time.monotonic()
        kept = self._kept
        while kept and kept[0].at < now - self._keep_s:
            self._kept_bytes -= kept.popleft().num_bytes
        return replies

    def _send(self, commands: Sequence[bytes]) -> list[Any]:
        try:
            return self._connection.call(commands, repeat=False)
        except CONNECTION_ERRORS:
            self._forgetful = True
            raise

    def _restore(self) -> None:
        """Write the results again that Redis has lost. Raises as `call` does."""
        owners = self._forgetting()
        kept = (
            (command, seq)
            for moment in (self._kept if owners else ())
            for at, (command, (owned, seq)) in enumerate(zip(moment.commands, moment.of, strict=True))
            if at not in moment.once and owners.get(owned.keys.results) == owned.epoch
        )
        before = self.num_restored
        while some := list(islice(kept, _AT_ONCE)):
            replies = self._taken([command for command, _ in some])
            self.num_restored += sum(
                seq > 0 and isinstance(reply, bytes) for (_, seq), reply in zip(some, replies, strict=True)
            )
        if self.num_restored > before:
            logger.warning("Redis forgot results, they are written again: %d", self.num_restored - before)

    def _forgetting(self) -> dict[bytes, int]:
        """Return the epoch of each stream's last owner, by its results' key; {} if no result is missing.

        If the epoch is another owner's, Redis has lost this owner or has a newer one, which goes on with the
        results that exist. A stream that is gone is left out.
        """
        said: dict[bytes, tuple[OwnedStream, int]] = {}
        for moment in self._kept:
            for owned, seq in moment.of:
                key = owned.keys.results
                if seq or key not in said:
                    said[key] = owned, seq
        owners: dict[bytes, int] = {}
        forgot = False
        streams = iter(said.items())
        while some := list(islice(streams, _AT_ONCE)):
            replies = self._taken([pack(*last_result(owned.keys)) for _, (owned, _) in some])
            for (key, (owned, seq)), reply in zip(some, replies, strict=True):
                if isinstance(reply, list) and reply:
                    # Each owner begins with an entry of its own, number 0.
                    owners[key], last = map(int, reply[0][0].split(b"-"))
                    forgot |= owners[key] == owned.epoch and last < seq
        return owners if forgot else {}

    def _taken(self, commands: Sequence[bytes]) -> list[Any]:
        """Return the replies; raise a temporary refusal. Others mean a repeat, or another owner."""
        replies = self._send(commands)
        for reply in replies:
            if isinstance(reply, Exception) and is_passing(reply):
                raise reply
        return replies
