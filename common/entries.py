"""The data formats in Redis: ids, entries of streams, lines of the pub/sub channels, and records of results.

`LAYOUT_VERSION` is the version of this layout and that of common/redis/keys.py. A cluster's settings carry
it, and so does every assignment, so that processes of two versions never read each other's streams.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from enum import Enum
from typing import Final, NewType, Protocol

import orjson

from common.errors import ERROR_SPECS, EntryError, ErrorCode, StreamError
from common.hot_value import hot_value
from common.messages import Encoding, LastState, Result, TurnDetection, Utterance, Word
from common.phrases import Phrase, decode_phrases, encode_phrases

LAYOUT_VERSION: Final = 3

StreamId = NewType("StreamId", int)
WorkerId = NewType("WorkerId", str)
IngressId = NewType("IngressId", str)

Bytes = bytes | bytearray | memoryview
# An entry as XREADGROUP returns it: id, and field names and values flat; None for a deleted entry.
RawEntry = tuple[bytes, Sequence[bytes] | None]

_PAYLOAD_FIELD: Final = {
    Encoding.PCM16: b"p",
    Encoding.F32: b"f",
    Encoding.MULAW: b"u",
    Encoding.ALAW: b"a",
}
# What a mark (an entry of `finalize` or `phrases`) costs in Redis and here, beside its content.
_MARK_BYTES: Final = 1024
_ENCODING_OF_FIELD: Final = {field: encoding for encoding, field in _PAYLOAD_FIELD.items()}


@hot_value
class AudioEntry:
    """One entry of a stream's audio.

    entry_id: explicit, `<connection>-<seq>` (audio_entry_id). `connection` counts the connections that
    fed the stream, from 1; `seq` counts entries over all of them, from 1, so that Redis refuses a repeated
    append, and a replaced connection can append nothing.
    first_sample: position of the first sample, counted from the start of the stream at the client's
    rate; the position after the last sample if there is no payload.
    payload: whole samples in `encoding`; empty if the entry is only a mark.
    final: whether no audio follows.
    finalize: whether the client requests a result of all audio up to here.
    phrases: phrases that replace the stream's from here on, None for no change.
    ingress: set when the stream has moved to another ingress, whose channel gets the results from here on.
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


def mark_bytes(phrases: Sequence[Phrase] = ()) -> int:
    """Return the bytes that an entry without samples counts, wherever bytes of audio are counted.

    Clients choose the number of these entries, which has to be bounded as that of samples is.
    """
    return _MARK_BYTES + sum(len(phrase.text) for phrase in phrases)


def entry_order(entry_id: bytes) -> tuple[int, int]:
    """Return the key that sorts the ids of a stream's audio."""
    connection, seq = entry_id.split(b"-")
    return int(connection), int(seq)


def next_entry_id(entry_id: bytes) -> bytes:
    """Return the smallest id after `entry_id`, for XTRIM MINID."""
    connection, seq = entry_id.split(b"-")
    return b"%s-%d" % (connection, int(seq) + 1)


@dataclass(frozen=True, slots=True)
class AssignmentEntry:
    """One stream that waits for, or has, a worker: an entry of a shard's assignments.

    entry_id: set by Redis. version: layout of the stream's keys; a worker ignores other layouts.
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
    """The kind of a published line, or of an entry of a stream's results."""

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
# Looking up a member of an enum costs a call in Python 3.11.
_FINAL: Final = LineKind.FINAL
_FINALIZED: Final = LineKind.FINALIZED


@hot_value
class Line:
    """One line of a pub/sub payload, or one entry of a stream's results.

    epoch: counts the owners of the stream; a line of a lower epoch than one seen before is void.
    seq: number of the result, gapless from 1 over all epochs; OWNER and ACK repeat the last one.
    acked: samples of the client, at the client's rate, that are decoded.
    body: has no line breaks. It is a result for PARTIAL, TURN, FINALIZED and FINAL, and an error for ERROR,
        as `encode_record` and `encode_error` write them; the worker's id for OWNER; empty for ACK.
    """

    kind: LineKind
    stream: StreamId
    epoch: int
    seq: int
    acked: int
    body: bytes


def pack_line(kind: LineKind, stream: StreamId, epoch: int, seq: int, acked: int, body: bytes) -> bytes:
    """Encode one `Line`, readable in redis-cli."""
    return b"%b %d %d %d %d %b" % (kind, stream, epoch, seq, acked, body)


def join_lines(lines: Iterable[bytes]) -> bytes:
    """Join encoded lines to a pub/sub payload."""
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

    Its fields, always in this order: `k` (the kind), `a` (samples decoded), `d` (the body). The entry of an
    owner, whose own number in the log is 0, also has `q` (the last result before it), which scripts read.
    """
    try:
        epoch, seq = entry_id.split(b"-")
        return Line(_KINDS[flat[1]], stream, int(epoch), int(seq), int(flat[3]), flat[5])
    except (KeyError, IndexError, ValueError) as error:
        raise EntryError(f"A result entry cannot be read: {error!r}") from error


# Results in Redis are records whose size does not grow with the stream. A record has the new part of the text
# and its position, never the text before. With the text of the result before it, the text of this one is
# `text[:text_from] + new`. The whole text is kept once, beside the log of results
# (common/streams/kept_text.py).
#
# A record is a JSON array, so that redis-cli can show it and it never has a line break:
# `[text_from, new text, token ids, confidences, last state, turn detection, words or null, utterances]`,
# a word `[word, start_s, end_s, confidence]`, an utterance `[number, text, start_s, end_s]`.


class Recognized(Protocol):
    """The part of an engine's output that a record has. `text` is the whole transcript so far."""

    @property
    def text(self) -> str: ...

    @property
    def token_ids(self) -> Sequence[int]: ...

    @property
    def confidence_scores(self) -> Sequence[float]: ...

    @property
    def last_state(self) -> LastState | None: ...

    @property
    def turn_detection(self) -> TurnDetection: ...

    @property
    def words(self) -> Sequence[Word] | None: ...

    @property
    def utterances(self) -> Sequence[Utterance]: ...


def encode_record(what: Recognized, text_from: int) -> bytes:
    """Encode a record. `text_from`: number of code points that the text shares with the result before it."""
    words = what.words
    return orjson.dumps(
        (
            text_from,
            what.text[text_from:],
            what.token_ids,
            what.confidence_scores,
            what.last_state,
            what.turn_detection,
            None
            if words is None
            else [(word.word, word.start_s, word.end_s, word.confidence) for word in words],
            [(one.number, one.text, one.start_s, one.end_s) for one in what.utterances]
            if what.utterances
            else (),
        )
    )


def decode_record(line: Line, text: str) -> Result:
    """Read the record of a PARTIAL, TURN, FINALIZED or FINAL line.

    text: text of the result before it, or of a later one whose first code points are the same. Raises
    EntryError, also for a record that begins after the end of the text.
    """
    try:
        text_from, new, token_ids, confidences, last_state, turn_detection, words, utterances = orjson.loads(
            line.body
        )
        if not 0 <= text_from <= len(text):
            raise EntryError(f"The text of stream {line.stream} is missing before result {line.seq}.")
        kind = line.kind
        # By position: keyword arguments cost half as much time again.
        return Result(
            text[:text_from] + new,
            tuple(token_ids),
            tuple(confidences),
            kind is _FINAL,
            last_state,
            turn_detection,
            line.seq,
            line.acked,
            None,
            None if words is None else tuple([Word(*word) for word in words]),
            tuple([Utterance(*one) for one in utterances]) if utterances else (),
            text_from,
            kind is _FINALIZED,
        )
    except (ValueError, TypeError) as error:
        raise EntryError(f"A record cannot be read: {error!r}") from error


def encode_error(error: StreamError) -> bytes:
    """Encode the body of an ERROR line."""
    return orjson.dumps((error.code.value, error.message))


def decode_error(line: Line) -> StreamError:
    """Read an ERROR line; a code of a newer version becomes an internal error. Raises EntryError."""
    try:
        code, message = orjson.loads(line.body)
        known = ErrorCode(code) if code in ERROR_SPECS else ErrorCode.INTERNAL
        return StreamError(known, str(message))
    except (ValueError, TypeError) as error:
        raise EntryError(f"An error cannot be read: {error!r}") from error
