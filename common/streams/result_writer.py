"""Results of streams, written by workers.

The stream `px:{k}:<sid>:r` is the truth, pub/sub the fast path. A worker sends what one step gave in
one pipeline a server: XADD of every result, XACK of the audio that it covers, one PUBLISH for each
ingress. How an ingress gets them: common/streams/result_reader.py. The text before a result is not in it, but
kept beside the log (common/streams/kept_text.py).
"""

from __future__ import annotations

import logging
from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Final

from common.entries import IngressId, LineKind, join_lines, pack_line
from common.redis.clients import RESPONSE_ERROR, RedisServers, SyncRedis, is_passing
from common.redis.connect import pack
from common.redis.keys import RESULTS_MAX_LENGTH, Keys, result_entry_id
from common.redis.scripts.streams import last_result
from common.streams.audio_reader import pack_ack
from common.streams.claims import OwnedStream
from common.streams.result_connection import ResultConnection

logger = logging.getLogger(__name__)

_LOGGED: Final = frozenset(LineKind) - {LineKind.OWNER, LineKind.ACK}
# Replies that say that a command did not do what it should, to look into.
_REFUSALS: Final = frozenset((RESPONSE_ERROR, type(None)))

# XADD key NOMKSTREAM MAXLEN ~ n id k kind a acked d body, in RESP: written for every result, at half the cost
# of packing its thirteen words one by one.
_XADD_RESULT: Final = b"".join(
    (
        b"*13\r\n$4\r\nXADD\r\n$%d\r\n%b\r\n$10\r\nNOMKSTREAM\r\n$6\r\nMAXLEN\r\n$1\r\n~\r\n",
        b"$%d\r\n%b\r\n$%d\r\n%b\r\n$1\r\nk\r\n$1\r\n%b\r\n$1\r\na\r\n$%d\r\n%b\r\n",
        b"$1\r\nd\r\n$%d\r\n%b\r\n",
    )
)


class ResultBatch:
    """What steps have to say of their streams, in one pipeline a server, packed as it is said.

    Results and acknowledgements are written in the order in which they are said, behind them what is
    published, and last the further commands.
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
        """Say a line to the ingress of a stream, kept in the stream's results if it is one.

        See `Line` for what is what. max_length: results that the log keeps, this one included.
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
        """Keep the text up to the result that was said last, by `ResultLog.keep`'s command."""
        part = self._of_shard[owned.keys.shard]
        part.texts[len(part.commands)] = owned
        part.commands.append(command)
        part.of.append((owned, 0))

    def acknowledge(self, owned: OwnedStream, entry_ids: Sequence[bytes]) -> None:
        """Say of audio entries that they are decoded."""
        part = self._of_shard[owned.keys.shard]
        part.commands.append(pack_ack(owned.keys, owned.record.epoch, entry_ids))
        part.of.append((owned, 0))

    def then(self, owned: OwnedStream, *commands: tuple[Any, ...]) -> None:
        """Run commands behind all that is said (checkpoint, end of the stream, wake-up)."""
        part = self._of_shard[owned.keys.shard]
        part.further += [pack(*command) for command in commands]
        part.further_of += [(owned, 0)] * len(commands)


class _Part:
    """What one server gets.

    of, further_of: for each of `commands` and `further` its stream, and the number of the result that it
        adds, 0 for none.
    texts: the streams of those of `commands` that keep text, by their place.
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
    """What came of writing a batch.

    lost: streams that have a newer owner, or whose results have left Redis: nothing that was said of them
        counts.
    refused: streams of which Redis refuses a key for good: one that is no stream, say.
    text_gone: streams of whose kept text Redis has forgotten the end: all of it is to be kept again.
    """

    lost: list[OwnedStream]
    refused: list[OwnedStream]
    text_gone: list[OwnedStream]


class ResultWriter:
    """Writes the results of steps; for one thread.

    keep_ms: how long results are kept after Redis took them, to be written again where it forgot them; 0 for
        a Redis that forgets all or nothing.
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
        """Results that were written again, since Redis had forgotten them."""
        return sum(connection.num_restored for connection in self._connections)

    def batch(self) -> ResultBatch:
        """Return a batch to fill."""
        return ResultBatch(self._redis.servers)

    def write(self, batch: ResultBatch) -> Written:
        """Write, acknowledge and publish, in one pipeline a server.

        May be repeated with the same batch after it raised (CONNECTION_ERRORS, or a refusal that passes):
        results that are in already are not written twice. To be called once a second at least, with an empty
        batch where there is nothing to write: what Redis has forgotten is noticed here.
        """
        written = Written([], [], [])
        for server, part in enumerate(batch.parts):
            connection = self._connections[server]
            commands = [*part.commands, *self._publications(part), *part.further]
            if not commands:
                connection.look()
                continue
            replies = connection.call(commands)
            # Nearly always every command did what it should; else find out which did not.
            if not _REFUSALS.isdisjoint(map(type, replies)):
                self._look_at_refusals(server, part, replies, written)
                written.text_gone.extend(owned for at, owned in part.texts.items() if replies[at] is None)
            if part.commands:
                # Not the texts: an older one would cut off what is behind it. Where one is missed, all are
                # written anew (`text_gone`).
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
                if refusal is not None:  # the ingress reads the results when it misses them
                    logger.error("results cannot be published: %s", refusal)
                continue
            owned, seq = of
            if owned in written.lost or owned in written.refused:
                continue
            if refusal is None:
                # An acknowledgement that finds no group or entry: the stream is another's, or this a repeat.
                if reply is None and seq:
                    written.lost.append(owned)
            elif seq and "equal or smaller" in str(refusal):
                if self._is_fenced(server, owned):
                    written.lost.append(owned)
            else:  # one stream's fault, and no other's
                logger.error("Redis refuses a stream: %s", refusal, extra={"stream_id": owned.stream})
                written.refused.append(owned)

    def _is_fenced(self, server: int, owned: OwnedStream) -> bool:
        """Tell a result that is in already (this was a repeat) from one that a newer owner refused."""
        last = self._redis.clients[server].execute_command(*last_result(owned.keys))
        return bool(last) and int(last[0][0].split(b"-")[0]) > owned.epoch
