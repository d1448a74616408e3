"""Results of streams, written by workers.

The stream `px:{k}:<sid>:r` is the truth, pub/sub the fast path. A worker sends the results of one step in one
pipeline for each server: XADD of every result, XACK of the audio that it covers, one PUBLISH for each
ingress. An ingress reads missed results with common/streams/result_reader.py. A result does not have the text
before it, which is kept beside the log (common/streams/kept_text.py).

A Redis that dies can lose its last writes: those that its append-only file, or the replica that replaces it,
did not have yet. A live owner would go on after results that the log has lost, and an ingress that did not
receive them (its subscription was cut, or a client resumes at it) could not follow. So written commands are
kept for a while (`ResultConnection`).

A Redis at its limit of memory refuses results. Then nothing could be acknowledged, and no memory would be
freed. So a script writes them there (common/redis/scripts/prelude.lua).
"""

from __future__ import annotations

import contextlib
import logging
import time
from collections import defaultdict, deque
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from typing import Any, Final

import redis.exceptions

from common.entries import IngressId, LineKind, join_lines, pack_line
from common.redis.clients import CONNECTION_ERRORS, RESPONSE_ERROR, RedisServers, SyncRedis, is_passing
from common.redis.connect import RefusedConnection, new_reader, pack
from common.redis.keys import RESULTS_MAX_LENGTH, Keys, StreamKeys, audio_group, result_entry_id
from common.redis.pipelined import SyncPipelinedConnection
from common.redis.scripts.ownership import beyond_limit
from common.redis.scripts.streams import last_result
from common.streams.claims import OwnedStream

logger = logging.getLogger(__name__)

_LOGGED: Final = frozenset(LineKind) - {LineKind.OWNER, LineKind.ACK}
# Types of replies to commands that may have failed and have to be examined.
_REFUSALS: Final = frozenset((RESPONSE_ERROR, type(None)))
# Most bytes that are kept of one server, whatever their age: more than 2,000 streams write in three seconds.
_MAX_KEPT_BYTES: Final = 64 * 1024 * 1024
# Streams that are checked, and commands that are written again, in one round trip.
_AT_ONCE: Final = 512
# An idle connection is checked this often as long as commands are kept.
_LOOK_S: Final = 1.0
_PING: Final = pack(b"PING")
# Commands that a server refuses at its limit of memory, and the beginning of the refusal.
_REFUSED_AT_LIMIT: Final = (b"XADD", b"ZADD")
_AT_LIMIT: Final = "OOM "
# For so long after a refusal a script runs these commands from the start. A server that frees memory between
# two commands would refuse a result and take the next one, and the log would lack the first for good.
_AT_LIMIT_S: Final = 5.0

# XADD key NOMKSTREAM MAXLEN ~ n id k kind a acked d body, in RESP: written for every result, at half the cost
# of packing its thirteen words one by one.
_XADD_RESULT: Final = b"".join(
    (
        b"*13\r\n$4\r\nXADD\r\n$%d\r\n%b\r\n$10\r\nNOMKSTREAM\r\n$6\r\nMAXLEN\r\n$1\r\n~\r\n",
        b"$%d\r\n%b\r\n$%d\r\n%b\r\n$1\r\nk\r\n$1\r\n%b\r\n$1\r\na\r\n$%d\r\n%b\r\n",
        b"$1\r\nd\r\n$%d\r\n%b\r\n",
    )
)

# XACK key group id, in RESP: written for nearly every chunk.
_XACK_ONE: Final = b"*4\r\n$4\r\nXACK\r\n$%d\r\n%b\r\n$%d\r\n%b\r\n$%d\r\n%b\r\n"


class ResultBatch:
    """The lines of steps for their streams, in one pipeline for each server; each line is packed at once.

    Results and acknowledgements are written in the order of the calls, then the publications, and the further
    commands last.
    """

    def __init__(self, servers: RedisServers) -> None:
        self.parts: Final = tuple(_Part() for _ in range(servers.num_servers))
        self._of_shard = [self.parts[servers.server_of_shard(shard)] for shard in range(servers.shards)]

    def say(
        self,
        owned: OwnedStream,
        ingress: IngressId,
        kind: LineKind,
        seq: int,
        acked: int,
        body: bytes = b"",
        *,
        max_length: int = RESULTS_MAX_LENGTH,
    ) -> None:
        """Add a line for the ingress of a stream; a result is also added to the stream's results.

        `Line` explains the arguments. max_length: results that the log keeps, this one included.
        """
        part, epoch = self._of_shard[owned.keys.shard], owned.record.epoch
        if kind in _LOGGED:
            key, entry_id = owned.keys.results, result_entry_id(epoch, seq)
            most, samples = b"%d" % max_length, b"%d" % acked
            part.commands.append(
                _XADD_RESULT
                % (
                    *(len(key), key, len(most), most, len(entry_id), entry_id),
                    *(kind, len(samples), samples, len(body), body),
                )
            )
            part.of.append((owned, seq))
        part.published[ingress].append(pack_line(kind, owned.keys.stream, epoch, seq, acked, body))

    def keep_text(self, owned: OwnedStream, command: bytes) -> None:
        """Keep the text up to the last result that was added, by the command of `ResultLog.keep`."""
        part = self._of_shard[owned.keys.shard]
        part.texts[len(part.commands)] = owned
        part.commands.append(command)
        part.of.append((owned, 0))

    def acknowledge(self, owned: OwnedStream, entry_ids: Sequence[bytes]) -> None:
        """Acknowledge audio entries that are decoded."""
        part = self._of_shard[owned.keys.shard]
        part.commands.append(_pack_ack(owned.keys, owned.record.epoch, entry_ids))
        part.of.append((owned, 0))

    def then(self, owned: OwnedStream, *commands: tuple[Any, ...]) -> None:
        """Add commands to run after all lines (checkpoint, end of the stream, wake-up)."""
        part = self._of_shard[owned.keys.shard]
        part.further += [pack(*command) for command in commands]
        part.further_of += [(owned, 0)] * len(commands)


class _Part:
    """The part of a batch for one server.

    of, further_of: for each of `commands` and `further` its stream, and the number of the result that it
    adds, 0 for no result.
    texts: the streams of the commands that keep text, by the index in `commands`.
    """

    __slots__ = ("commands", "further", "further_of", "of", "published", "texts")

    def __init__(self) -> None:
        self.commands: Final[list[bytes]] = []
        self.of: Final[list[tuple[OwnedStream, int]]] = []
        self.texts: Final[dict[int, OwnedStream]] = {}
        self.published: Final[dict[IngressId, list[bytes]]] = defaultdict(list)
        self.further: list[bytes] = []
        self.further_of: list[tuple[OwnedStream, int]] = []


@dataclass(frozen=True, slots=True)
class Written:
    """The outcome of writing a batch.

    lost: streams that have a newer owner, or whose results are gone from Redis: their lines do not count.
    refused: streams with a key that Redis refuses permanently, for example one of another type.
    text_gone: streams whose kept text has lost its end: all of the text has to be kept again.
    """

    lost: list[OwnedStream]
    refused: list[OwnedStream]
    text_gone: list[OwnedStream]


class ResultWriter:
    """Writes the results of steps; for one thread.

    keep_ms: how long results are kept after Redis took them, to be written again if it loses them; 0 for a
    Redis that loses all or nothing.
    """

    def __init__(self, redis: SyncRedis, keys: Keys, *, keep_ms: int = 0) -> None:
        self._redis = redis
        self._keys = keys
        self._connections = [
            ResultConnection(redis.pipelined(server), keep_ms / 1000)
            for server in range(redis.servers.num_servers)
        ]

    @property
    def num_restored(self) -> int:
        """Number of results that were written again, since Redis had lost them."""
        return sum(connection.num_restored for connection in self._connections)

    def batch(self) -> ResultBatch:
        """Return an empty batch."""
        return ResultBatch(self._redis.servers)

    def write(self, batch: ResultBatch) -> Written:
        """Write, acknowledge and publish, in one pipeline for each server.

        May be repeated with the same batch after it raised (CONNECTION_ERRORS, or a temporary refusal):
        results are not written twice. Must be called at least once a second, if need be with an empty batch:
        losses of Redis are noticed here.
        """
        written = Written([], [], [])
        for server, part in enumerate(batch.parts):
            connection = self._connections[server]
            commands = [*part.commands, *self._publications(part), *part.further]
            if not commands:
                connection.look()
                continue
            replies = connection.call(commands)
            # Nearly always every command succeeded; otherwise find those that did not.
            if not _REFUSALS.isdisjoint(map(type, replies)):
                self._look_at_refusals(server, part, replies, written)
                written.text_gone.extend(owned for at, owned in part.texts.items() if replies[at] is None)
            if part.commands:
                # Texts are not repeated: an older text would cut off the text after it. If one is missing,
                # all are written anew (`text_gone`).
                connection.keep(part.commands, part.of, part.texts)
        return written

    def _publications(self, part: _Part) -> Iterator[bytes]:
        for ingress, lines in part.published.items():
            yield pack(b"PUBLISH", self._keys.channel(ingress), join_lines(lines))

    def _look_at_refusals(self, server: int, part: _Part, replies: Sequence[Any], written: Written) -> None:
        num_published = len(part.published)
        of_publications: list[tuple[OwnedStream, int] | None] = [None] * num_published
        for of, reply in zip((*part.of, *of_publications, *part.further_of), replies, strict=True):
            refusal = reply if isinstance(reply, Exception) else None
            if refusal is not None and is_passing(refusal):
                raise refusal
            if of is None:
                if refusal is not None:  # the ingress notices the gap and reads the results
                    logger.error("results cannot be published: %s", refusal)
                continue
            owned, seq = of
            if owned in written.lost or owned in written.refused:
                continue
            if refusal is None:
                # An acknowledgement without a group or entry: the stream has another owner, or this is a
                # repeat.
                if reply is None and seq:
                    written.lost.append(owned)
            elif seq and "equal or smaller" in str(refusal):
                if self._is_fenced(server, owned):
                    written.lost.append(owned)
            else:  # a fault of this stream alone
                logger.error("Redis refuses a stream: %s", refusal, extra={"stream_id": owned.stream})
                written.refused.append(owned)

    def _is_fenced(self, server: int, owned: OwnedStream) -> bool:
        """Tell a repeated result, which Redis has already, from one that a newer epoch refused."""
        last = self._redis.clients[server].execute_command(*last_result(owned.keys))
        return bool(last) and int(last[0][0].split(b"-")[0]) > owned.epoch


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
    """A worker's connection for results to one server, which may lose writes that it has confirmed.

    After each loss of the connection the last result of every stream is read, and missing results are written
    again, under the same ids, before any others. For one thread.

    keep_s: how long commands are kept after Redis took them; 0 for a Redis that loses all or nothing.
    """

    def __init__(self, connection: SyncPipelinedConnection, keep_s: float) -> None:
        self._connection = connection
        self._keep_s = keep_s
        self._kept: deque[_Moment] = deque()
        self._kept_bytes = 0
        self._called_at = 0.0
        self._forgetful = False  # the connection was lost, and Redis was not checked for lost writes
        self._at_limit_until = 0.0
        self.num_restored = 0  # results that were written again

    def call(self, commands: Sequence[bytes]) -> list[Any]:
        """Send packed commands and return their replies, as `SyncPipelinedConnection.call` does.

        Results that Redis has lost are written first; a temporary refusal of these raises, too.
        """
        if not self._keep_s:
            return self._exchange(commands, repeat=True)
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
            return self._exchange(commands, repeat=False)
        except CONNECTION_ERRORS:
            self._forgetful = True
            raise

    def _exchange(self, commands: Sequence[bytes], *, repeat: bool) -> list[Any]:
        """Call the connection; what a server at its limit of memory has refused is run by the script."""
        now = time.monotonic()
        if now < self._at_limit_until:
            commands = [_beyond_limit(command) for command in commands]
        replies = self._connection.call(commands, repeat=repeat)
        if RESPONSE_ERROR in map(type, replies):
            refused = [at for at, reply in enumerate(replies) if str(reply).startswith(_AT_LIMIT)]
            if refused:
                self._at_limit_until = now + _AT_LIMIT_S
                again = [_beyond_limit(commands[at]) for at in refused]
                for at, reply in zip(refused, self._connection.call(again, repeat=repeat), strict=True):
                    replies[at] = reply
        return replies

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


def _beyond_limit(command: bytes) -> bytes:
    """Return a packed command so that a server at its limit of memory takes it."""
    reader = new_reader()
    reader.feed(command)
    parts = reader.gets()
    return pack(*beyond_limit(parts)) if parts[0] in _REFUSED_AT_LIMIT else command


def _pack_ack(keys: StreamKeys, epoch: int, entry_ids: Sequence[bytes]) -> bytes:
    """Pack the command that acknowledges decoded entries; its reply counts the acknowledged ones."""
    key, group = keys.audio, audio_group(epoch)
    if len(entry_ids) > 1:
        return pack(b"XACK", key, group, *entry_ids)
    (entry_id,) = entry_ids
    return _XACK_ONE % (len(key), key, len(group), group, len(entry_id), entry_id)
