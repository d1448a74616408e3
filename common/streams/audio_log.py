"""The audio log: writes the audio of streams to Redis; gpu_worker/pipeline/intake.py reads it.

An ingress queues appends per stream, and commits those of all streams together, every few
milliseconds, as one pipeline for each server: XADD for each stream, then one ZADD for each ready set. This
order loses no wake-up: a worker that is woken finds the audio. Ids are explicit, so a repeat after a broken
connection is refused as "equal or smaller", which means that the entry is in already.

A Redis that dies can lose its last writes: those that its append-only file, or the replica that replaces it,
did not have yet. So written entries are kept for a while. After each loss of the connection the last entry of
every stream is read, and missing entries are written again before any others. A stream that is gone is
created anew if all of its entries are still kept.
"""

from __future__ import annotations

import asyncio
import logging
import time
import weakref
from collections.abc import Callable, Iterable, Sequence
from typing import Final

from common.entries import Bytes, WorkerId
from common.errors import InternalFault, RedisUnavailable, StreamLost, Unavailable
from common.messages import Audio
from common.process.pace import Pace
from common.redis.clients import (
    CONNECTION_ERRORS,
    AsyncRedis,
    is_passing,
)
from common.redis.connect import pack
from common.redis.keys import READY_TTL_MS, Keys, StreamKeys
from common.redis.scripts import streams as scripts
from common.streams.appender import Appender
from common.streams.shortage import AHEAD_S, Shortage

logger = logging.getLogger(__name__)

# Streams of one pipeline: bounds its reply and the pause between two turns of the event loop.
_MAX_COMMIT: Final = 512
_RETRY_PAUSE_S: Final = 0.05
# Commits of an ingress at ease, and of a busy one, begin at least this far apart: a commit costs its writer,
# Redis and the worker that it wakes many system calls and thread switches, whether it carries one entry or
# fifty. The first commit after a pause does not wait, nor does the end of a stream that is next in its
# stream's queue. The worker handles each commit at once: see gpu_worker/pipeline/intake.py.
_COMMIT_EVERY_S: Final = 0.005
_BUSY_COMMIT_EVERY_S: Final = 0.010
# Streams that wait for a shortage of memory are looked at again this often.
_SLOWED_S: Final = 0.1
# Streams whose lost entries are written again together: bounds the bytes of one pipeline.
_MAX_WRITTEN_AGAIN: Final = 64
# Most streams that one log line names.
_MAX_NAMED: Final = 10


class AudioLog:
    """Group commit of the appends of all streams of an ingress, with one task for each server.

    give_up_ms: how long an append is tried again while Redis is away or full, before its stream fails.
    coalesce_ms: a message shorter than this waits at most this long for the stream's next messages, which
    then share its entry; 0 commits every message at once.
    keep_ms: how long audio is kept after Redis took it; 0 for a Redis that loses all or nothing.
    on_commit: called with the duration of each commit until the reply of Redis, in seconds.
    """

    def __init__(
        self,
        redis: AsyncRedis,
        keys: Keys,
        give_up_ms: int,
        *,
        coalesce_ms: int = 0,
        keep_ms: int = 0,
        on_commit: Callable[[float], None] = lambda seconds: None,
    ) -> None:
        self._servers = redis.servers
        self._coalesce_ms = coalesce_ms
        self._logs = tuple(
            ServerLog(redis, keys, server, give_up_ms / 1000, coalesce_ms / 1000, keep_ms / 1000, on_commit)
            for server in range(redis.servers.num_servers)
        )

    def open(
        self,
        keys: StreamKeys,
        on_failure: Callable[[Unavailable], None],
        *,
        connection: int = 1,
        next_seq: int = 1,
        first_sample: int = 0,
        sample_rate: int = 16000,
        origin: Callable[[], bytes] | None = None,
        attachment: Callable[[], bytes] | None = None,
        ahead_s: Callable[[int], float] = lambda _: 0.0,
    ) -> Appender:
        """Begin to append to a created stream with audio at `sample_rate` (Hz).

        `on_failure` is called at most once.  `origin` returns the packed command that created the stream, and
        `attachment` the one that attaches it again.  `ahead_s` returns the seconds that are not decoded
        of its first samples, given their number: while memory is short, a stream that is far ahead waits.
        """
        log = self._logs[self._servers.server_of_shard(keys.shard)]
        appender = Appender(
            *(log, keys, connection, next_seq, first_sample, on_failure, log.keep_s, origin, attachment)
        )
        # Two messages just below the bound are enough for an entry.
        appender.enough_samples = 2 * self._coalesce_ms * sample_rate // 1000
        appender.ahead_s = ahead_s
        log.appenders.add(appender)
        return appender

    def reopen(self, failed: Appender, on_failure: Callable[[Unavailable], None]) -> Appender:
        """Return an appender to follow one that failed, for the final mark."""
        return self.open(
            failed.keys,
            on_failure,
            connection=failed.connection,
            next_seq=failed.next_seq,
            first_sample=failed.first_sample,
        )

    @property
    def num_restored(self) -> int:
        """Number of entries that were written again, since Redis had lost them; for any thread."""
        return sum(log.num_restored for log in self._logs)

    async def run(self) -> None:
        """Commit until cancelled."""
        async with asyncio.TaskGroup() as tasks:
            for log in self._logs:
                tasks.create_task(log.run(), name=f"audio-log-{log.server}")

    async def flush(self, timeout_s: float) -> bool:
        """Wait until nothing is queued, for a shutdown; return False after the time-out."""
        try:
            async with asyncio.timeout(timeout_s):
                for log in self._logs:
                    log.release_held()
                    await log.drained.wait()
        except TimeoutError:
            return False
        return True


class ServerLog:
    """The commits to one server."""

    def __init__(
        self,
        redis: AsyncRedis,
        keys: Keys,
        server: int,
        give_up_s: float,
        coalesce_s: float,
        keep_s: float,
        on_commit: Callable[[float], None],
    ) -> None:
        self.server = server
        self.num_restored = 0
        self._on_commit = on_commit
        self.keep_s = keep_s
        self.appenders: weakref.WeakSet[Appender] = weakref.WeakSet()
        self._forgetful = False  # the connection was lost, and Redis was not checked for lost writes
        self._loop = asyncio.get_running_loop()
        self._coalesce_s = coalesce_s
        # Streams whose short messages wait for more, and the times at which the waits end. All waits are
        # equally long, so the order of insertion is the order of times, and one timer serves them all.
        self._held: dict[Appender, float] = {}
        self._release: asyncio.TimerHandle | None = None
        self._connection = redis.pipelined(server)
        if keep_s:
            self._connection.on_loss = self.suspect_loss
        self._keys = keys
        self._give_up_s = give_up_s
        self._waiting: dict[Appender, None] = {}
        self._announced: dict[Appender, None] = {}
        self._memory = Shortage(server)
        self._slowed: dict[Appender, None] = {}  # those that wait while memory is short
        self._slowed_timer: asyncio.TimerHandle | None = None
        self._work = asyncio.Event()  # it is time for a commit
        self._urgent = False  # an appender waits that must not be delayed
        self._pace = Pace(_BUSY_COMMIT_EVERY_S, shortest_s=_COMMIT_EVERY_S)
        self._next_commit = 0.0
        self._commit_timer: asyncio.TimerHandle | None = None
        self.drained = asyncio.Event()
        self.drained.set()

    def ready_key(self, shard: int, owner: WorkerId) -> bytes:
        return self._keys.ready(shard, owner)

    def queued(self, appender: Appender, audio: Audio | None) -> None:
        if audio is not None and not audio.final and appender.enough_samples:
            appender.held_samples += audio.num_samples
            if appender.held_samples < appender.enough_samples:
                self._hold(appender)
                return
        self._add(appender)
        if audio is None or audio.final:
            self._urgent = True
            self._work.set()

    def announce(self, appender: Appender) -> None:
        self._announced[appender] = None
        self._work.set()

    def release_held(self) -> None:
        """Commit the messages that are held to be joined with others."""
        for appender in list(self._held):
            self._add(appender)

    def _hold(self, appender: Appender) -> None:
        if appender in self._waiting or appender in self._held:
            return
        self._held[appender] = self._loop.time() + self._coalesce_s
        self.drained.clear()
        if self._release is None:
            self._release = self._loop.call_later(self._coalesce_s, self._release_due)

    def _release_due(self) -> None:
        self._release = None
        now = self._loop.time()
        while self._held:
            appender, due = next(iter(self._held.items()))
            if due > now:
                self._release = self._loop.call_at(due, self._release_due)
                return
            self._add(appender)

    def _add(self, appender: Appender) -> None:
        if self._held:
            self._held.pop(appender, None)
        appender.held_samples = 0
        if not self._waiting:
            self.drained.clear()
            self._commit_when_due()
        self._waiting[appender] = None

    def _commit_when_due(self) -> None:
        """Schedule the next commit: at once, or when the interval since the last commit is over."""
        if self._work.is_set() or self._commit_timer is not None:
            return
        if self._loop.time() >= self._next_commit:
            self._work.set()
        else:
            self._commit_timer = self._loop.call_at(self._next_commit, self._commit_due)

    def _commit_due(self) -> None:
        self._commit_timer = None
        if self._waiting:  # an urgent commit may have taken all of them
            self._work.set()

    async def run(self) -> None:
        since: float | None = None  # when the server began to refuse, or went away
        while True:
            await self._work.wait()
            self._pace.begun()
            self._next_commit = self._loop.time() + self._pace.interval_s
            refused = await self._restore()
            too_many = False
            if refused is None:
                batch, self._waiting = _first(self._waiting)
                too_many = bool(self._waiting)
                self._urgent = False
                announced, self._announced = _first(self._announced)
                refused = await self._commit(batch, announced)
            if refused is None:
                since = None
            else:
                now = time.monotonic()
                since = since if since is not None else now
                if now - since >= self._give_up_s:
                    # A caller that is notified may append again at once: that waits for the next round.
                    failed, self._waiting = self._waiting, {}
                    logger.error(
                        "audio of %d streams could not be written for %.0f s, and they end (%s): %s",
                        len(failed),
                        self._give_up_s,
                        ", ".join(str(appender.keys.stream) for appender in list(failed)[:_MAX_NAMED])
                        + (", ..." if len(failed) > _MAX_NAMED else ""),
                        refused,
                    )
                    for appender in failed:
                        appender.fail(RedisUnavailable(refused))
                    since = None
                else:
                    await asyncio.sleep(_RETRY_PAUSE_S)
            if not (self._waiting or self._held or self._slowed):
                self.drained.set()
            if refused is None and not (self._announced or self._forgetful or self._urgent or too_many):
                self._work.clear()
                if self._waiting:
                    self._commit_when_due()

    def suspect_loss(self) -> None:
        """Note that Redis may have lost its last writes: check its entries before the next commit."""
        self._forgetful = True
        self._work.set()

    async def _restore(self) -> str | None:
        """Write entries again that Redis has lost; return why that failed, or None.

        No commit comes between a loss and this: commands that are sent on a lost connection fail, and a loss
        in the meantime is noticed here again.
        """
        while self._forgetful:
            self._forgetful = False
            refused = await self._write_again([appender for appender in self.appenders if appender.keeps])
            if refused is not None:
                self._forgetful = True
                return refused
        return None

    async def _write_again(self, appenders: Sequence[Appender]) -> str | None:
        for at in range(0, len(appenders), _MAX_WRITTEN_AGAIN):
            some = appenders[at : at + _MAX_WRITTEN_AGAIN]
            try:
                refused = await self._attach_again(some)
                if refused is not None:
                    return refused
                last = await self._connection.send(
                    [pack(*scripts.last_audio_id(appender.keys)) for appender in some]
                )
                parts: list[Bytes] = []
                again: list[Appender] = []  # the stream of each command
                for appender, last_id in zip(some, last, strict=True):
                    if isinstance(last_id, Exception):
                        if is_passing(last_id):
                            return str(last_id)
                        self._refused(appender, last_id)
                        continue
                    # The next append finds out that a stream is gone permanently.
                    lacking = appender.write_forgotten(last_id, parts)
                    if lacking:
                        self.announce(appender)
                        again += [appender] * lacking
                if not again:
                    continue
                logger.warning(
                    "Redis forgot streams or audio, they are written again: %d entries", len(again)
                )
                replies = await self._connection.send(parts, len(again))
                self.num_restored += len(again)
                for appender, reply in zip(again, replies, strict=True):
                    if isinstance(reply, Exception) and "equal or smaller" not in str(reply):
                        if is_passing(reply):
                            return str(reply)
                        self._refused(appender, reply)
            except CONNECTION_ERRORS as error:
                return str(error)
        return None

    async def _attach_again(self, appenders: Iterable[Appender]) -> str | None:
        """Attach streams again that Redis has under another ingress. Raises CONNECTION_ERRORS."""
        attached = [(one, one.attachment()) for one in appenders if one.attachment is not None]
        replies = await self._connection.send([command for _, command in attached]) if attached else ()
        for (appender, _), reply in zip(attached, replies, strict=True):
            if isinstance(reply, Exception):
                if is_passing(reply):
                    return str(reply)
                self._refused(appender, reply)
            elif reply:
                self.num_restored += 1
                logger.warning("Redis forgot where a stream is", extra={"stream_id": appender.keys.stream})
        return None

    @staticmethod
    def _refused(appender: Appender, reply: Exception) -> None:
        """End this stream alone for a permanent refusal, for example of a key of another type."""
        logger.error("Redis refuses a stream's audio: %s", reply, extra={"stream_id": appender.keys.stream})
        appender.fail(InternalFault())

    async def _commit(self, batch: list[Appender], announced: list[Appender]) -> str | None:
        """Commit one entry of each stream; return why the server refused some of them, or None."""
        parts: list[Bytes] = []
        if self._memory.is_short or self._slowed:
            batch = self._not_slowed(batch)
        sent = [appender for appender in batch if appender.write_next(parts)]
        told = self._told(sent, announced)
        for key, members in told.items():
            parts.append(pack(b"ZADD", key, b"NX", *members))
            parts.append(pack(b"PEXPIRE", key, READY_TTL_MS))  # a set that was emptied has lost its expiry
        began_s = self._loop.time()
        look = self._memory.commands(began_s)
        parts += look
        if not parts:
            return None
        try:
            replies = await self._connection.send(parts, len(sent) + 2 * len(told) + len(look))
        except CONNECTION_ERRORS as error:
            self._again(sent, announced)
            return str(error)
        now_s = self._loop.time()
        self._on_commit(now_s - began_s)
        if look:
            self._memory.told(replies.pop(), now_s)
        refused: str | None = None
        back: list[Appender] = []
        for appender, reply in zip(sent, replies, strict=False):
            if reply is None:
                appender.fail(StreamLost())
            elif isinstance(reply, Exception) and "equal or smaller" not in str(reply):
                if is_passing(reply):
                    refused = str(reply)  # full (OOM), loading, read-only replica after a failover
                    back.append(appender)
                else:
                    self._refused(appender, reply)
            elif appender.committed():
                self._add(appender)
        untold = {
            key
            for key, reply in zip(told, replies[len(sent) :: 2], strict=True)
            if isinstance(reply, Exception) and is_passing(reply)
        }
        if back or untold:
            self._again(back, [one for one in (*sent, *announced) if one.ready in untold])
        return refused

    def _not_slowed(self, batch: Sequence[Appender]) -> list[Appender]:
        """Return those of a batch that append now; the others wait, as memory is short and they are ahead."""
        going = []
        for appender in batch:
            if self._memory.is_short and appender.ahead_s(appender.first_sample) > AHEAD_S:
                self._slowed[appender] = None
            else:
                self._slowed.pop(appender, None)
                going.append(appender)
        if self._slowed and self._slowed_timer is None:
            self._slowed_timer = self._loop.call_later(_SLOWED_S, self._look_at_slowed)
        return going

    def _look_at_slowed(self) -> None:
        self._slowed_timer = None
        for appender in list(self._slowed):
            self._add(appender)

    @staticmethod
    def _told(sent: Sequence[Appender], announced: Sequence[Appender]) -> dict[bytes, list[bytes]]:
        """Return the words that are added to each ready set: score, member, score, member, ..."""
        now_ms = b"%d" % (time.time() * 1000)
        told: dict[bytes, list[bytes]] = {}
        for appenders in (sent, announced):
            for appender in appenders:
                key = appender.ready
                if key is None:
                    continue
                members = told.get(key)
                if members is None:
                    members = told[key] = []
                members += (now_ms, appender.member)
        return told

    def _again(self, appenders: Sequence[Appender], announced: Sequence[Appender]) -> None:
        """Queue streams again that could not be committed, before those that were queued since."""
        self._waiting = dict.fromkeys((*appenders, *self._waiting))
        self._announced = dict.fromkeys((*announced, *self._announced))
        self._work.set()
        self.drained.clear()


def _first(waiting: dict[Appender, None]) -> tuple[list[Appender], dict[Appender, None]]:
    """Return the waiting appenders for one commit, and the rest, both in order."""
    if len(waiting) <= _MAX_COMMIT:
        return list(waiting), {}
    appenders = list(waiting)
    return appenders[:_MAX_COMMIT], dict.fromkeys(appenders[_MAX_COMMIT:])
