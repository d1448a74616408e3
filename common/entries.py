"""What travels through Redis: ids, entries of streams, and the lines of the pub/sub channels.

`LAYOUT_VERSION` names this layout and that of common/redis/keys.py; a cluster's settings carry it, and so
does every assignment, so that processes of two versions never read each other's streams.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from enum import Enum
from typing import Final, NewType

from common.errors import EntryError
from common.hot_value import hot_value
from common.messages import Encoding
from common.phrases import Phrase, decode_phrases, encode_phrases

LAYOUT_VERSION: Final = 3

StreamId = NewType("StreamId", int)
WorkerId = NewType("WorkerId", str)
IngressId = NewType("IngressId", str)

Bytes = bytes | bytearray | memoryview
# An entry as XREADGROUP returns it: id, and field names and values flat; None for one that was deleted.
RawEntry = tuple[bytes, Sequence[bytes] | None]

_PAYLOAD_FIELD: Final = {
    Encoding.PCM16: b"p",
    Encoding.F32: b"f",
    Encoding.MULAW: b"u",
    Encoding.ALAW: b"a",
}
_ENCODING_OF_FIELD: Final = {field: encoding for encoding, field in _PAYLOAD_FIELD.items()}


@hot_value
class AudioEntry:
    """One entry of a stream's audio.

    entry_id: explicit, `<connection>-<seq>` (audio_entry_id). `connection` counts the connections that
    fed the stream, from 1; `seq` goes on over them, from 1, so that a repeated append is refused by
    Redis and a connection that was replaced can append nothing.
    first_sample: position of the first sample, counted from the start of the stream at the client's
    rate; the position behind the last one if there is no payload.
    payload: whole samples in `encoding`; empty where the entry only marks.
    final: no audio follows.
    finalize: the client wants a result of all audio up to here.
    phrases: what replaces the stream's phrases from here on, None for no change.
    ingress: set when the stream moved to another ingress, whose channel gets the results from here on.
    """

    entry_id: bytes
    first_sample: int
    payload: Bytes
    encoding: Encoding = Encoding.PCM16
    final: bool = False
    ingress: IngressId | None = None
    finalize: bool = False
    phrases: tuple[Phrase, ...] | None = None

    @property
    def num_samples(self) -> int:
        """Number of samples in the payload."""
        return len(self.payload) // self.encoding.sample_bytes

    @property
    def connection(self) -> int:
        """Number of the connection that appended it."""
        return int(self.entry_id.split(b"-")[0])

    @property
    def seq(self) -> int:
        """Number of the entry."""
        return int(self.entry_id.split(b"-")[1])

    def fields(self) -> list[Bytes]:
        """Field names and values, flat, as XADD takes them. The payload is not copied."""
        flat: list[Bytes] = [b"o", b"%d" % self.first_sample]
        if self.payload:
            flat += (_PAYLOAD_FIELD[self.encoding], self.payload)
        if self.final:
            flat += (b"x", b"1")
        if self.ingress is not None:
            flat += (b"i", self.ingress.encode())
        if self.finalize:
            flat += (b"z", b"1")
        if self.phrases is not None:
            flat += (b"h", encode_phrases(self.phrases))
        return flat


def audio_entry_id(connection: int, seq: int) -> bytes:
    """Return the explicit id of an entry of a stream's audio."""
    return b"%d-%d" % (connection, seq)


def decode_audio_entry(entry_id: bytes, flat: Sequence[bytes] | None) -> AudioEntry:
    """Read a `RawEntry`. Raises EntryError for an entry of another layout, or a deleted one."""
    if flat is None:
        raise EntryError("An audio entry was deleted before it was read.")
    try:
        if len(flat) == 4 and flat[0] == b"o" and flat[2] == b"p":  # nearly all of them
            return AudioEntry(entry_id, int(flat[1]), flat[3])
        first_sample = -1
        payload = b""
        encoding = Encoding.PCM16
        final = False
        ingress: IngressId | None = None
        finalize = False
        phrases: tuple[Phrase, ...] | None = None
        for at in range(0, len(flat), 2):
            name = flat[at]
            value = flat[at + 1]
            if name == b"o":
                first_sample = int(value)
            elif name in _ENCODING_OF_FIELD:
                payload = value
                encoding = _ENCODING_OF_FIELD[name]
            elif name == b"x":
                final = True
            elif name == b"z":
                finalize = True
            elif name == b"h":
                phrases = decode_phrases(value)
            elif name == b"i":
                ingress = IngressId(value.decode())
            else:
                raise EntryError(f"An audio entry has the unknown field {name!r}.")
    except (ValueError, IndexError) as error:
        raise EntryError(f"An audio entry cannot be read: {error}") from error
    if first_sample < 0:
        raise EntryError("An audio entry does not say where it begins.")
    return AudioEntry(entry_id, first_sample, payload, encoding, final, ingress, finalize, phrases)


def entry_order(entry_id: bytes) -> tuple[int, int]:
    """Return what orders the ids of a stream's audio."""
    connection, seq = entry_id.split(b"-")
    return int(connection), int(seq)


def next_entry_id(entry_id: bytes) -> bytes:
    """Return the smallest id behind `entry_id`, for XTRIM MINID."""
    connection, seq = entry_id.split(b"-")
    return b"%s-%d" % (connection, int(seq) + 1)


@dataclass(frozen=True, slots=True)
class AssignmentEntry:
    """One stream that waits for, or has, a worker: an entry of a shard's assignments.

    entry_id: given by Redis. version: layout of the stream's keys; a worker leaves others alone.
    """

    stream: StreamId
    entry_id: bytes
    version: int = LAYOUT_VERSION


def decode_assignment(entry_id: bytes, flat: Sequence[bytes]) -> AssignmentEntry:
    """Read an assignment as XREADGROUP or XCLAIM returns it. Raises EntryError."""
    fields = dict(zip(flat[::2], flat[1::2], strict=False))
    try:
        return AssignmentEntry(StreamId(int(fields[b"sid"])), entry_id, int(fields[b"v"]))
    except (KeyError, ValueError) as error:
        raise EntryError(f"An assignment cannot be read: {error!r}") from error


class LineKind(bytes, Enum):
    """What a published line, or an entry of a stream's results, is."""

    PARTIAL = b"p"  # a result that may be merged with its neighbours for a slow reader
    TURN = b"t"  # a result with the start or end of an utterance: never merged away
    FINALIZED = b"z"  # the answer to `finalize`: never merged away
    FINAL = b"f"  # the result with is_final: ends the stream
    ERROR = b"e"  # an error with which the worker ends the stream
    OWNER = b"o"  # a worker took the stream over
    ACK = b"a"  # audio was decoded without a result; published only

    # Kinds are looked up for every result, and Enum's own hash is a Python function.
    __hash__ = bytes.__hash__


_KINDS: Final = {kind.value: kind for kind in LineKind}


@hot_value
class Line:
    """One line of a pub/sub payload, or one entry of a stream's results.

    epoch: counts the owners of the stream; a line of a lower epoch than one seen before is void.
    seq: of the result, gapless from 1 over all epochs; OWNER and ACK repeat the last one.
    acked: samples of the client, at the client's rate, that are decoded.
    body: without line breaks. Of PARTIAL, TURN, FINALIZED and FINAL a result, and of ERROR an error, as
        common/result_record.py writes them; of OWNER the worker's id; of ACK nothing.
    """

    kind: LineKind
    stream: StreamId
    epoch: int
    seq: int
    acked: int
    body: bytes


def pack_line(kind: LineKind, stream: StreamId, epoch: int, seq: int, acked: int, body: bytes) -> bytes:
    """Write one `Line`, readable in redis-cli."""
    return b"%b %d %d %d %d %b" % (kind, stream, epoch, seq, acked, body)


def join_lines(lines: Iterable[bytes]) -> bytes:
    """Make a pub/sub payload of encoded lines."""
    return b"\n".join(lines)


def decode_lines(payload: bytes) -> list[Line]:
    """Read a pub/sub payload. Raises EntryError."""
    lines = []
    try:
        for text in payload.split(b"\n"):
            kind, sid, epoch, seq, acked, body = text.split(b" ", 5)
            stream = int(sid)  # a call of StreamId would do nothing, for every result
            lines.append(
                Line(_KINDS[kind], stream, int(epoch), int(seq), int(acked), body)  # type: ignore[arg-type]
            )
    except (ValueError, KeyError) as error:
        raise EntryError(f"A published line cannot be read: {error!r}") from error
    return lines


def decode_result_entry(stream: StreamId, entry_id: bytes, flat: Sequence[bytes]) -> Line:
    """Read an entry of a stream's results, whose id is `<epoch>-<seq>`. Raises EntryError.

    Its fields, always in this order: `k` (the kind), `a` (samples decoded), `d` (the body); and of an owner,
    whose own number in the log is 0, `q` (the last result before it), which scripts read.
    """
    try:
        epoch, seq = entry_id.split(b"-")
        return Line(_KINDS[flat[1]], stream, int(epoch), int(seq), int(flat[3]), flat[5])
    except (KeyError, IndexError, ValueError) as error:
        raise EntryError(f"A result entry cannot be read: {error!r}") from error
