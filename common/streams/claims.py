"""Claims: a worker claims, takes over, opens and ends streams.

The worker whose consumer has an assignment pending owns the stream; the assignment leaves at the
stream's end. Opening a stream raises its epoch, which fences the owner before.
"""

from __future__ import annotations

import itertools
import logging
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Final

from common.entries import (
    LAYOUT_VERSION,
    AssignmentEntry,
    IngressId,
    StreamId,
    WorkerId,
    decode_assignment,
    next_entry_id,
)
from common.errors import EntryError
from common.redis.clients import RESPONSE_ERROR, SyncRedis, is_passing
from common.redis.keys import ASSIGNMENT_GROUP, Keys, StreamKeys
from common.redis.pipelined import SyncClient
from common.redis.scripts import Command
from common.redis.scripts import ownership as scripts
from common.streams.assignments import Checkpoint, StreamRecord, decode_record

logger = logging.getLogger(__name__)

# Suspects that run together in quarantine at first.
MAX_SUSPECTS: Final = 64
# Assignments that one script takes over: Lua passes at most some 8,000 arguments, and Redis serves no other
# client meanwhile.
_MAX_TAKEN: Final = 1000


# A snapshot is megabytes. Redis serves no other client while it reads one command, and may have to move a
# value that grows. So a snapshot is written in pieces, each of which takes a fraction of a millisecond.
_PIECE_BYTES: Final = 256 * 1024


@dataclass(frozen=True, slots=True)
class OwnedStream:
    """A stream that this worker owns, with its state at the time of opening.

    entry_id: its assignment. last_seq: last result that an earlier owner may have published; results
    of a replay up to it are not sent again. last_acked: samples of the client that it acknowledged.
    text_bytes: size of the kept text.
    poison: the stream has ended processes that ran no other stream; it is opened to be ended.
    """

    keys: StreamKeys
    entry_id: bytes
    record: StreamRecord
    last_seq: int
    last_acked: int = 0
    text_bytes: int = 0
    poison: bool = False

    @property
    def stream(self) -> StreamId:
        """The stream."""
        return self.keys.stream

    @property
    def epoch(self) -> int:
        """The epoch of this ownership."""
        return self.record.epoch


@dataclass(frozen=True, slots=True)
class Stored:
    """The stored state from which a new owner goes on.

    snapshot: the engine's state at the checkpoint; None where it is gone.
    text: the kept text of the stream; it covers the stream at least up to the checkpoint.
    """

    snapshot: bytes | None
    text: str


@dataclass(frozen=True, slots=True)
class Suspect:
    """A stream whose owners died over the same audio: only a quarantined process may open it."""

    entry: AssignmentEntry


@dataclass(frozen=True, slots=True)
class Refused:
    """A stream that could not be opened: Redis refused it, or its record cannot be read."""

    entry: AssignmentEntry
    error: Exception


Opening = OwnedStream | Suspect | Refused | None
"""The outcome of opening a stream; None where it has ended or another worker owns it by now."""


class Claims:
    """The assignments that a worker takes, opens and ends. May be used by several threads.

    chunk_ms: least audio that a step takes.
    """

    def __init__(self, redis: SyncRedis, keys: Keys, worker: WorkerId, *, chunk_ms: int = 0) -> None:
        self._redis = redis
        self._chunk_ms = chunk_ms
        self._keys = keys
        self._worker = worker
        self._snapshots = itertools.count(1)

    def prepare(self) -> None:
        """Create the group of every shard that has none (at start, and when Redis lost it)."""
        for shard in range(self._keys.shards):
            command = scripts.make_group(self._keys.assignments(shard))
            self._redis.shard(shard).execute_command(*command)

    def wait(
        self, client: SyncClient, shards: Sequence[int], count: int, block_ms: int | None
    ) -> list[AssignmentEntry]:
        """Wait for up to `count` new streams of shards that share a server, through a blocking client.

        shards: where there are more of them than `count`, only the first ones are asked.
        block_ms: longest wait; None does not wait.

        Creates the groups again when Redis has lost them.
        """
        streams = [self._keys.assignments(shard) for shard in shards[:count]]
        each = count // len(streams)  # Redis applies the count to each key
        block: Command = () if block_ms is None else ("BLOCK", block_ms)
        try:
            reply = client.execute_command(
                *(b"XREADGROUP", b"GROUP", ASSIGNMENT_GROUP, self._worker, b"COUNT", each, *block),
                *(b"STREAMS", *streams, *([b">"] * len(streams))),
            )
        except RESPONSE_ERROR as error:
            if "NOGROUP" not in str(error):
                raise
            self.prepare()
            return []
        return _readable(item for _, entries in reply or () for item in entries)

    def pending_of(
        self, worker: WorkerId, count: int, shards: Sequence[int] | None = None
    ) -> list[AssignmentEntry]:
        """Take over up to `count` streams of a worker whose lease has lapsed; of all shards, or of these.

        Of two workers that do this at once, each gets different streams.
        """
        taken: list[AssignmentEntry] = []
        for shard in range(self._keys.shards) if shards is None else shards:
            start = b"-"
            while start and len(taken) < count:
                some = min(_MAX_TAKEN, count - len(taken))
                last, found = self._redis.shard(shard).execute_command(
                    *scripts.take_over(
                        self._keys.assignments(shard), of=worker, to=self._worker, count=some, first=start
                    )
                )
                taken += _readable(found)
                start = b"(" + last if last else b""
        return taken

    def owners(self, shards: Sequence[int] | None = None) -> Counter[WorkerId]:
        """Return the workers that own streams, each with their number over all shards, or over these.

        The assignments expire a day after the last call, or the last new stream: without them nobody could
        take a stream over.
        """
        found: Counter[WorkerId] = Counter()
        for shard in range(self._keys.shards) if shards is None else shards:
            reply = self._redis.shard(shard).execute_command(*scripts.owners(self._keys.assignments(shard)))
            found.update({WorkerId(name.decode()): int(number) for name, number in reply})
        return found

    def remove_consumer(self, worker: WorkerId) -> bool:
        """Remove a worker without streams from the groups; return False if it owns a stream after all."""
        gone = True
        for shard in range(self._keys.shards):
            gone &= bool(
                self._redis.shard(shard).execute_command(
                    *scripts.remove_consumer(
                        self._keys.assignments(shard), ready=self._keys.ready(shard, worker), worker=worker
                    )
                )
            )
        return gone

    def open(self, entries: Sequence[AssignmentEntry], together: int = 0) -> list[Opening]:
        """Become the owner of each of these streams, with its next epoch; return outcomes in the same order.

        together: suspects that run in this process at once, these among them; 0 for an ordinary worker.

        Raises the client's error if a server did not answer. Some streams may have been opened then; opening
        them again does no harm.
        """
        replies = self._redis.of_streams(
            [(entry.stream, self._opening(entry, together)) for entry in entries]
        )
        return [self._opened(entry, reply) for entry, reply in zip(entries, replies, strict=True)]

    def _opening(self, entry: AssignmentEntry, together: int) -> Command:
        keys = self._keys.stream(entry.stream)
        return scripts.open_stream(
            keys,
            assignments=self._keys.assignments(keys.shard),
            ready=self._keys.ready(keys.shard, self._worker),
            worker=self._worker,
            entry_id=entry.entry_id,
            together=together,
            chunk_ms=self._chunk_ms,
        )

    def _opened(self, entry: AssignmentEntry, reply: Any) -> Opening:
        if isinstance(reply, Exception):
            return Refused(entry, reply)
        if reply[0] == b"suspect":
            return Suspect(entry)
        if reply[0] != b"owned":
            return None
        try:
            record = decode_record(entry.stream, reply[4])
        except EntryError as error:
            return Refused(entry, error)
        keys = self._keys.stream(entry.stream)
        return OwnedStream(
            keys,
            entry.entry_id,
            record,
            last_seq=int(reply[2]),
            last_acked=int(reply[3]),
            text_bytes=int(reply[6]),
            poison=bool(reply[5]),
        )

    def within(self, entries: Sequence[AssignmentEntry]) -> list[int]:
        """Return how many suspects may run together, for each of these. Raises the client's errors."""
        replies = self._redis.of_streams(
            [(entry.stream, ("HGET", self._keys.stream(entry.stream).meta, "within")) for entry in entries]
        )
        _raise_first(replies)
        return [MAX_SUSPECTS if most is None else int(most) for most in replies]

    def give(self, entries: Sequence[AssignmentEntry], heir: WorkerId) -> list[bool]:
        """Transfer pending assignments to another worker; False for one that is not this worker's any more.

        Raises the client's errors.
        """
        replies = self._redis.of_streams(
            [
                (
                    entry.stream,
                    scripts.give(
                        self._keys.assignments(self._keys.shard_of(entry.stream)),
                        worker=self._worker,
                        heir=heir,
                        entry_id=entry.entry_id,
                    ),
                )
                for entry in entries
            ]
        )
        _raise_first(replies)
        return [bool(reply) for reply in replies]

    def let_go(self, streams: Sequence[OwnedStream], *, cleared: bool) -> None:
        """Note that the next owner takes over from a live worker: these streams have ended no process.

        cleared: whether the stream got past the audio it was suspected for. Raises the client's errors.
        """
        replies = self._redis.of_streams(
            [
                (owned.stream, scripts.let_go(owned.keys, epoch=owned.epoch, cleared=cleared))
                for owned in streams
            ]
        )
        _raise_first(replies)

    def snapshots(self, streams: Sequence[OwnedStream]) -> list[Stored | None]:
        """Return the stored state at each stream's checkpoint; None for a stream without a checkpoint.

        All of them are in memory at once, so the caller reads a few at a time. Raises the client's errors.
        """
        found: list[Stored | None] = [None] * len(streams)
        stored = [index for index, owned in enumerate(streams) if owned.record.checkpoint.is_stored]
        replies = self._redis.of_streams(
            [
                (streams[index].stream, command)
                for index in stored
                for keys in (streams[index].keys,)
                for command in (("LRANGE", keys.snapshot, 0, -1), ("GET", keys.text))
            ]
        )
        _raise_first(replies)
        for index, pieces, text in zip(stored, replies[::2], replies[1::2], strict=True):
            found[index] = Stored(b"".join(pieces) or None, (text or b"").decode(errors="replace"))
        return found

    def still_owned(self, streams: Sequence[OwnedStream]) -> list[bool]:
        """Return for each stream whether its record still names this worker and epoch, or cannot be read.

        Raises the Redis client's errors, except for a refused record, which concerns one stream only.
        """
        replies = self._redis.of_streams(
            [(owned.stream, ("HMGET", owned.keys.meta, "owner", "epoch")) for owned in streams]
        )
        _raise_first(reply for reply in replies if isinstance(reply, Exception) and is_passing(reply))
        ours = self._worker.encode()
        return [
            isinstance(reply, Exception) or (reply[0] == ours and int(reply[1] or 0) == owned.epoch)
            for owned, reply in zip(streams, replies, strict=True)
        ]

    def ingresses(self, streams: Sequence[OwnedStream]) -> list[IngressId | None]:
        """Return the ingress of each stream by its record; None if the record cannot be read.

        Raises the Redis client's error if a server did not answer.
        """
        replies = self._redis.of_streams(
            [(owned.stream, ("HGET", owned.keys.meta, "ingress")) for owned in streams]
        )
        return [IngressId(reply.decode()) if isinstance(reply, bytes) else None for reply in replies]

    def finish(self, streams: Sequence[OwnedStream]) -> None:
        """End streams without notifying their clients; a stream of another worker is left alone.

        Raises the client's errors.
        """
        _raise_first(
            self._redis.of_streams([(owned.stream, self.finish_command(owned)) for owned in streams])
        )

    def finish_command(self, owned: OwnedStream) -> Command:
        """Return the command that ends a stream; it goes after the last result, in the same pipeline.

        Its reply is 1, or 0 if another worker owns the stream by now, or -1 if the stream is gone from Redis.
        """
        shard = owned.keys.shard
        return scripts.finish(
            owned.keys,
            assignments=self._keys.assignments(shard),
            ready=self._keys.ready(shard, self._worker),
            entry_id=owned.entry_id,
            epoch=owned.epoch,
        )

    def checkpoint_commands(
        self, owned: OwnedStream, checkpoint: Checkpoint, snapshot: bytes
    ) -> Iterator[Command]:
        """Yield the commands that store a checkpoint and trim the audio before it, in order.

        The last command makes the checkpoint valid. Its reply is 1, or 0 if the stream has ended or another
        worker owns it by now. All commands may be repeated from the first.
        """
        # A stream may have one snapshot being written while another is handed over.
        staged = owned.keys.staged_snapshot(owned.epoch, next(self._snapshots))
        yield scripts.stage(staged, piece=snapshot[:_PIECE_BYTES])
        for at in range(_PIECE_BYTES, len(snapshot), _PIECE_BYTES):
            yield scripts.beyond_limit(("RPUSHX", staged, snapshot[at : at + _PIECE_BYTES]))
        entry_id = checkpoint.entry_id
        yield scripts.checkpoint(
            owned.keys,
            staged=staged,
            epoch=owned.epoch,
            first_kept=b"0-1" if entry_id is None else next_entry_id(entry_id),
            num_pieces=-(-len(snapshot) // _PIECE_BYTES),
            samples=checkpoint.samples_decoded,
            seq=checkpoint.seq,
            fields=(
                *("ck_chars", checkpoint.text_chars, "ck_finals", checkpoint.utterances),
                *("ck_reach", checkpoint.reach_samples),
                *("base_samples", checkpoint.base.samples, "base_chars", checkpoint.base.text_chars),
                *("base_finals", checkpoint.base.utterances, "base_entry", checkpoint.base.finalized or b""),
                *("base_origin", checkpoint.base.origin, "base_client", checkpoint.base.client_origin),
                *(() if entry_id is None else ("ck_entry", entry_id)),
            ),
        )


def _raise_first(replies: Iterable[Any]) -> None:
    """Raise the first refusal among replies."""
    for reply in replies:
        if isinstance(reply, Exception):
            raise reply


def _readable(entries: Iterable[Sequence[Any]]) -> list[AssignmentEntry]:
    """Return assignments of this version's layout; log others and leave them to workers of their version."""
    found = []
    for entry_id, flat in entries:
        try:
            entry = decode_assignment(entry_id, flat)
        except EntryError as error:
            logger.error("unreadable assignment", extra={"entry_id": entry_id.decode(), "reason": str(error)})
            continue
        if entry.version == LAYOUT_VERSION:
            found.append(entry)
        else:
            logger.error("assignment of another layout", extra={"stream_id": entry.stream})
    return found
