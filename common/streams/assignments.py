"""The records of streams, with which an ingress creates, keeps, moves and removes its streams.

A new stream is offered to the workers by an assignment, one entry in `px:{k}:new`, which workers claim
(common/streams/claims.py). The record (`px:{k}:<sid>:m`) has the epoch, which counts the owners. Every write
of an owner that must not outlive its ownership checks the epoch.
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

from common.entries import IngressId, StreamId, WorkerId, decode_assignment
from common.errors import EntryError, RedisUnavailable
from common.options import StreamOptions, decode_options, encode_options
from common.redis.clients import REDIS_ERROR, AsyncRedis, error_of_stream
from common.redis.connect import Argument, pack
from common.redis.keys import Keys, StreamKeys
from common.redis.scripts import FORGOTTEN_NUMBERS, Command
from common.redis.scripts import streams as scripts


@dataclass(frozen=True, slots=True)
class NewStream:
    """The facts of a new stream.

    token_hash: hash of the secret that `resume` has to show, empty for no secret.
    ttl_ms: life of the stream's keys without a renewal.
    grace_ms: how long the stream waits for a resume after its ingress died or its client left.
    trace: the context of its trace, empty for none (common/tracing).
    """

    stream: StreamId
    ingress: IngressId
    options: StreamOptions
    sample_rate: int
    token_hash: str
    created_ms: int
    ttl_ms: int
    grace_ms: int
    trace: str = ""


@dataclass(frozen=True, slots=True)
class Base:
    """The point at which an engine began a stream: the beginning, or the last point without a snapshot.

    samples: 16 kHz samples before it.   text_chars: code points of the text before it.
    utterances: finals of utterances before it.
    finalized: the audio entry of the last `finalize` that was answered, if any.
    origin, client_origin: the 16 kHz sample and the client's sample after it from which both are counted.
    """

    samples: int = 0
    text_chars: int = 0
    utterances: int = 0
    finalized: bytes | None = None
    origin: int = 0
    client_origin: int = 0


BEGINNING: Final = Base()


@dataclass(frozen=True, slots=True)
class Checkpoint:
    """The point from which a new owner begins.

    entry_id: last audio entry that a replay does not need; None for a replay from the beginning.
    samples_decoded: 16 kHz samples that the snapshot covers. seq: last result before it.
    text_chars: code points of its text. utterances: finals of utterances that were sent by then.
    base: the point at which the engine began; it has no state from before.
    reach_samples: 16 kHz samples before `samples_decoded` that the engine has to process again.
    """

    entry_id: bytes | None = None
    samples_decoded: int = 0
    seq: int = 0
    text_chars: int = 0
    utterances: int = 0
    base: Base = BEGINNING
    reach_samples: int = 0

    @property
    def is_stored(self) -> bool:
        """Whether there is one: it covers audio, or a `finalize` without any before it."""
        return bool(self.samples_decoded or self.entry_id)

    @property
    def first_sample(self) -> int:
        """The 16 kHz sample at which an owner begins to read."""
        return self.samples_decoded - self.reach_samples


@dataclass(frozen=True, slots=True)
class StreamRecord:
    """The record of a stream in Redis; `owner` is None and `epoch` 0 before the first claim.

    connection: number of the connection that feeds the stream.
    token_before: hash of the previous secret, which is valid until the client has confirmed the new one;
    empty for none.
    died_to: last audio entry that an owner had read and not decoded when it died; deaths: number of owners
    that died before the stream was past that entry.
    cold: whether an owner has begun at the checkpoint without its snapshot, so that a replay differs from the
    results that were sent.
    text_seq, text_chars: last result whose text is in the kept text, and code points of the kept text.
    trace: the context of its trace, empty for none.
    """

    stream: StreamId
    ingress: IngressId
    options: StreamOptions
    sample_rate: int
    token_hash: str
    created_ms: int
    ttl_ms: int
    grace_ms: int
    owner: WorkerId | None
    epoch: int
    checkpoint: Checkpoint
    finished: bool
    died_to: bytes | None = None
    deaths: int = 0
    text_seq: int = 0
    text_chars: int = 0
    connection: int = 1
    cold: bool = False
    trace: str = ""
    token_before: str = ""


def _decode_base(fields: Mapping[bytes, bytes]) -> Base:
    finalized = fields.get(b"base_entry") or None
    samples = int(fields.get(b"base_samples", 0))
    if samples == 0 and finalized is None:
        return BEGINNING
    return Base(
        samples,
        int(fields[b"base_chars"]),
        int(fields[b"base_finals"]),
        finalized,
        int(fields[b"base_origin"]),
        int(fields[b"base_client"]),
    )


def decode_record(stream: StreamId, flat: Sequence[bytes]) -> StreamRecord:
    """Read the hash of a stream from names and values, flat. Raises EntryError."""
    fields = dict(zip(flat[::2], flat[1::2], strict=False))
    try:
        owner = fields.get(b"owner")
        return StreamRecord(
            stream,
            IngressId(fields[b"ingress"].decode()),
            decode_options(fields[b"options"]),
            int(fields[b"sample_rate"]),
            fields[b"token"].decode(),
            int(fields[b"created_ms"]),
            int(fields[b"ttl_ms"]),
            int(fields[b"grace_ms"]),
            None if owner is None else WorkerId(owner.decode()),
            int(fields[b"epoch"]),
            Checkpoint(
                fields.get(b"ck_entry"),
                int(fields.get(b"ck_samples", 0)),
                int(fields.get(b"ck_seq", 0)),
                int(fields.get(b"ck_chars", 0)),
                int(fields.get(b"ck_finals", 0)),
                base=_decode_base(fields),
                reach_samples=int(fields.get(b"ck_reach", 0)),
            ),
            b"finished" in fields,
            fields.get(b"died_to"),
            int(fields.get(b"deaths", 0)),
            int(fields.get(b"text_seq", 0)),
            int(fields.get(b"text_chars", 0)),
            int(fields.get(b"connection", 1)),
            b"cold" in fields,
            fields.get(b"trace", b"").decode(),
            fields.get(b"token_before", b"").decode(),
        )
    except (KeyError, ValueError) as error:
        raise EntryError(f"The record of stream {stream} cannot be read: {error!r}") from error


class StreamDirectory:
    """The streams of an ingress, which it creates, keeps and removes here.

    Calls raise RedisUnavailable when a server does not answer in time or refuses all commands, EntryError
    when it refuses a key of the one stream or its value cannot be read.
    """

    def __init__(self, redis: AsyncRedis, keys: Keys) -> None:
        self._redis = redis
        self._keys = keys

    async def create(self, new: NewStream) -> StreamKeys:
        """Write the record, create the stream's audio, and offer the stream to the workers.

        This is one command, and a repeat changes nothing.
        """
        await self._execute(new.stream, *self._creation(new, 0, anew=False))
        return self._keys.stream(new.stream)

    def creation_anew(self, new: NewStream, epoch: int) -> bytes:
        """Return the packed command that creates a stream which Redis has lost.

        epoch: epoch of the last known owner, which may live and end the stream.
        """
        return pack(*self._creation(new, epoch + FORGOTTEN_NUMBERS, anew=True))

    def _creation(self, new: NewStream, epoch: int, *, anew: bool) -> Command:
        keys = self._keys.stream(new.stream)
        return scripts.create(
            keys,
            assignments=self._keys.assignments(keys.shard),
            ttl_ms=new.ttl_ms,
            anew=anew,
            epoch=epoch,
            fields=(
                *("ingress", new.ingress, "options", encode_options(new.options)),
                *("sample_rate", new.sample_rate, "token", new.token_hash, "created_ms", new.created_ms),
                *("ttl_ms", new.ttl_ms, "grace_ms", new.grace_ms),
                *(("trace", new.trace) if new.trace else ()),
            ),
        )

    async def streams_of(self, ingress: IngressId) -> list[StreamId]:
        """Return the streams of an ingress that have begun and not ended."""
        streams: list[StreamId] = []
        for shard in range(self._keys.shards):
            entries = await self._execute(StreamId(shard), *scripts.live(self._keys.assignments(shard)))
            live = [decode_assignment(entry_id, flat).stream for entry_id, flat in entries]
            connection = self._redis.pipelined(self._redis.servers.server_of_shard(shard))
            for at in range(0, len(live), _LIST_BATCH):
                part = live[at : at + _LIST_BATCH]
                try:
                    owners = await connection.send(
                        [pack(b"HGET", self._keys.stream(stream).meta, b"ingress") for stream in part]
                    )
                except (REDIS_ERROR, OSError) as error:
                    raise RedisUnavailable from error
                name = ingress.encode()
                streams += [stream for stream, owner in zip(part, owners, strict=True) if owner == name]
        return streams

    async def read(self, stream: StreamId) -> StreamRecord | None:
        """Return the record of a stream, or None when it is gone."""
        flat = await self._execute(stream, *scripts.read(self._keys.stream(stream)))
        return decode_record(stream, flat) if flat else None

    async def attach(
        self,
        stream: StreamId,
        ingress: IngressId,
        expected: tuple[IngressId, int] | None = None,
        tokens: tuple[str, str] | None = None,
    ) -> int:
        """Move a stream to another ingress; returns the number of the new connection.

        The ingress then appends an audio entry with that connection number and its own id, which
        notifies the worker, and closes the log to the previous connection. Returns 0 for a stream that is
        gone.

        expected: the ingress and the number of the connection that the stream must still have, or else the
        stream is left unchanged and this returns 0. None if the caller has shown the stream's secret.
        tokens: hashes of that secret, and of the new secret that replaces it once confirmed; returns -1 if
        the first is not the stream's any more.
        """
        command = scripts.attach(self._keys.stream(stream), ingress=ingress, expected=expected, tokens=tokens)
        return int(await self._execute(stream, *command))

    def attachment_anew(
        self, stream: StreamId, ingress: IngressId, connection: int, tokens: tuple[str, str] | None
    ) -> bytes:
        """Return the packed command that attaches a stream again if Redis has lost the attachment.

        connection, tokens: those of `attach`; the first token is "" once the second is confirmed.
        """
        keys = self._keys.stream(stream)
        return pack(*scripts.attach_again(keys, ingress=ingress, connection=connection, tokens=tokens))

    async def confirm(self, stream: StreamId, token: str) -> None:
        """Note that the client has the token with this hash: the previous token becomes invalid."""
        await self._execute(stream, *scripts.confirm(self._keys.stream(stream), token=token))

    async def renew(self, streams: Iterable[StreamKeys], ttl_ms: int) -> list[StreamId]:
        """Renew the expiry of all keys of these streams; return the streams whose record is gone.

        Those on a server that does not answer, or that refuses, are left for the next time. Raises
        RedisUnavailable where no server answers.
        """
        by_server: dict[int, list[StreamKeys]] = {}
        for keys in streams:
            by_server.setdefault(self._redis.servers.server_of_shard(keys.shard), []).append(keys)
        found = await asyncio.gather(
            *(self._renew(server, group, ttl_ms) for server, group in by_server.items()),
            return_exceptions=True,
        )
        failures = [reply for reply in found if isinstance(reply, BaseException)]
        for failure in failures:
            if not isinstance(failure, RedisUnavailable) or len(failures) == len(found):
                raise failure
        return [stream for reply in found if not isinstance(reply, BaseException) for stream in reply]

    async def _renew(self, server: int, group: Sequence[StreamKeys], ttl_ms: int) -> list[StreamId]:
        connection = self._redis.pipelined(server)
        gone: list[StreamId] = []
        for at in range(0, len(group), _RENEW_BATCH):
            part = group[at : at + _RENEW_BATCH]
            try:
                replies = await connection.send(
                    [pack(b"PEXPIRE", key, ttl_ms) for keys in part for key in keys.renewed]
                )
            except (REDIS_ERROR, OSError) as error:
                raise RedisUnavailable from error
            for keys, kept in zip(part, replies[:: len(part[0].renewed)], strict=True):
                if isinstance(kept, Exception):
                    raise RedisUnavailable from kept
                if not kept:
                    gone.append(keys.stream)
        return gone

    async def withdraw(self, keys: StreamKeys) -> bool:
        """Withdraw a stream that no worker has claimed; return False if a worker has, which will end it."""
        return bool(await self._execute(keys.stream, *scripts.withdraw(keys)))

    async def remove(self, keys: StreamKeys) -> None:
        """Delete the keys of a finished stream that no client will resume."""
        await self._execute(keys.stream, "DEL", keys.results, keys.meta, keys.text)

    async def _execute(self, stream: StreamId, *command: Argument) -> Any:
        try:
            server = self._redis.servers.server_of_shard(self._keys.shard_of(stream))
            return await self._redis.execute(server, *command)
        except (REDIS_ERROR, OSError) as error:
            raise error_of_stream(error) from error


_RENEW_BATCH: Final = 500
_LIST_BATCH: Final = 1000
