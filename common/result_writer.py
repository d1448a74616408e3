"""Results of streams, written by workers.

The stream `px:{k}:<sid>:r` is the truth, pub/sub the fast path. A worker sends what one step gave in
one pipeline a server: XADD of every result, XACK of the audio that it covers, one PUBLISH for each
ingress. How an ingress gets them: common/result_reader.py.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Final

import orjson

from common.audio_reader import pack_ack
from common.entries import IngressId, Line, LineKind, encode_line, join_lines
from common.keys import RESULTS_MAX_LENGTH, Keys, StreamKeys, result_entry_id
from common.pipelined import pack
from common.redis import RESPONSE_ERROR, SyncRedis
from common.result_channel import channel_of

_LOGGED: Final = frozenset((LineKind.PARTIAL, LineKind.TURN, LineKind.FINAL, LineKind.ERROR))
# Replies that say that a command did not do what it should, to look into.
_REFUSALS: Final = frozenset((RESPONSE_ERROR, type(None)))

# XADD key NOMKSTREAM MAXLEN ~ n id k kind j json, in RESP: written for every result, at half the cost
# of packing its eleven words one by one.
_XADD_RESULT: Final = b"".join(
    (
        b"*11\r\n$4\r\nXADD\r\n$%d\r\n%b\r\n$10\r\nNOMKSTREAM\r\n$6\r\nMAXLEN\r\n$1\r\n~\r\n",
        b"$%d\r\n%d\r\n" % (len(str(RESULTS_MAX_LENGTH)), RESULTS_MAX_LENGTH),
        b"$%d\r\n%b\r\n$1\r\nk\r\n$1\r\n%b\r\n$1\r\nj\r\n$%d\r\n%b\r\n",
    )
)


def _pack_result(key: bytes, line: Line) -> bytes:
    entry_id = result_entry_id(line.epoch, line.seq)
    json = line.json
    return _XADD_RESULT % (len(key), key, len(entry_id), entry_id, line.kind, len(json), json)


@dataclass(slots=True)
class StreamWrite:
    """What one step has to say about one stream.

    acked: ids of audio entries that are decoded by now.
    extra: further commands, run behind the results and acks (checkpoint, end of the stream, wake-up).
    """

    keys: StreamKeys
    epoch: int
    ingress: IngressId
    lines: list[Line] = field(default_factory=list)
    acked: list[bytes] = field(default_factory=list)
    extra: list[tuple[Any, ...]] = field(default_factory=list)


@dataclass(frozen=True, slots=True)
class WriteOutcome:
    """What became of a `StreamWrite`.

    fenced: a newer owner has the stream; nothing of the write counts.
    gone: the stream's results have left Redis.
    """

    fenced: bool = False
    gone: bool = False


_WRITTEN: Final = WriteOutcome()


class ResultWriter:
    """Writes the results of steps; for one thread."""

    def __init__(self, redis: SyncRedis, keys: Keys) -> None:
        self._redis = redis
        self._keys = keys
        self._connections = [redis.pipelined(server) for server in range(redis.servers.num_servers)]

    def write(self, writes: Sequence[StreamWrite]) -> list[WriteOutcome]:
        """Write, acknowledge and publish, in one pipeline a server; an outcome for each write.

        May be repeated with the same writes after it raised (CONNECTION_ERRORS or a RedisError):
        results that are in already are not written twice.
        """
        if self._redis.servers.num_servers == 1:
            return self._write_server(0, writes)
        by_server: dict[int, list[int]] = {}
        for index, write in enumerate(writes):
            by_server.setdefault(self._redis.servers.server_of_shard(write.keys.shard), []).append(index)
        outcomes: dict[int, WriteOutcome] = {}
        for server, indices in by_server.items():
            replies = self._write_server(server, [writes[index] for index in indices])
            outcomes.update(zip(indices, replies, strict=True))
        return [outcomes[index] for index in range(len(writes))]

    def _write_server(self, server: int, writes: Sequence[StreamWrite]) -> list[WriteOutcome]:
        commands: list[bytes] = []
        by_ingress: dict[IngressId, list[bytes]] = {}
        for write in writes:
            published = by_ingress.setdefault(write.ingress, [])
            for line in write.lines:
                if line.kind in _LOGGED:
                    commands.append(_pack_result(write.keys.results, line))
                published.append(encode_line(line))
            if write.acked:
                commands.append(pack_ack(write.keys, write.epoch, write.acked))
        for ingress, lines in by_ingress.items():
            if lines:
                publish, _, channel = channel_of(self._redis.servers, self._keys, server, ingress)
                commands.append(pack(publish, channel, join_lines(lines)))
        commands += [pack(*command) for write in writes for command in write.extra]
        replies = self._connections[server].call(commands) if commands else []
        # Nearly always every command did what it should; else find out which did not.
        if _REFUSALS.isdisjoint(map(type, replies)):
            return [_WRITTEN] * len(writes)
        return self._outcomes(self._redis.clients[server], writes, replies)

    def _outcomes(
        self, client: Any, writes: Sequence[StreamWrite], replies: Sequence[Any]
    ) -> list[WriteOutcome]:
        at = 0
        outcomes: list[WriteOutcome] = []
        for write in writes:
            fenced = gone = False
            for line in write.lines:
                if line.kind not in _LOGGED:
                    continue
                reply = replies[at]
                at += 1
                if reply is None:
                    gone = True
                elif isinstance(reply, RESPONSE_ERROR) and "equal or smaller" in str(reply):
                    fenced = fenced or self._is_fenced(client, write)
                elif isinstance(reply, Exception):
                    raise reply
            if write.acked:
                at += 1  # an unknown group or entry gives 0: the stream is another's, or this a repeat
            outcomes.append(WriteOutcome(fenced, gone))
        num_extra = sum(len(write.extra) for write in writes)
        for reply in replies[len(replies) - num_extra :]:
            if isinstance(reply, Exception):
                raise reply
        return outcomes

    @staticmethod
    def _is_fenced(client: Any, write: StreamWrite) -> bool:
        """Tell a result that is in already (this was a repeat) from one that a newer owner refused."""
        last = client.execute_command(
            "EVAL", "return redis.call('XREVRANGE', KEYS[1], '+', '-', 'COUNT', 1)", 1, write.keys.results
        )
        return bool(last) and int(last[0][0].split(b"-")[0]) > write.epoch


def ack_json(audio_ack_samples: int) -> bytes:
    """JSON of an ACK line."""
    return orjson.dumps({"audio_ack_samples": audio_ack_samples})
