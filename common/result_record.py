"""Results as they travel through Redis: records whose size does not grow with the stream.

A record has the part of the text that is new and where it goes, never the text before. Whoever has the text
of the result before it has the text of this one: `text[:text_from] + new`. The whole text is kept once,
beside the log of results (common/streams/kept_text.py).

A record is a JSON array, so that redis-cli shows it and a line break never stands in it:
`[text_from, new text, token ids, confidences, last state, turn detection, words or null, utterances]`,
a word `[word, start_s, end_s, confidence]`, an utterance `[number, text, start_s, end_s]`.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final, Protocol

import orjson

from common.entries import Line, LineKind
from common.errors import ERROR_SPECS, EntryError, ErrorCode, StreamError
from common.messages import LastState, Result, TurnDetection, Utterance, Word

_NUM_FIELDS: Final = 8


class Recognized(Protocol):
    """What an engine says of a chunk, as far as a record has it. `text` is the whole transcript so far."""

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
    """Write a record. `text_from`: code points of the text that are those of the result before it."""
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

    text: of the result before it; it may be of a later one, as long as its first code points are the same.
    Raises EntryError, also for a record that goes behind the end of the text.
    """
    try:
        fields = orjson.loads(line.body)
        if len(fields) != _NUM_FIELDS:
            raise EntryError(f"A record has {len(fields)} fields, not {_NUM_FIELDS}.")
        text_from, new, token_ids, confidences, last_state, turn_detection, words, utterances = fields
        if not 0 <= text_from <= len(text):
            raise EntryError(f"The text of stream {line.stream} is missing before result {line.seq}.")
        return Result(
            text=text[:text_from] + new,
            token_ids=tuple(token_ids),
            confidence_scores=tuple(confidences),
            is_final=line.kind is LineKind.FINAL,
            last_state=last_state,
            turn_detection=turn_detection,
            seq=line.seq,
            audio_ack_samples=line.acked,
            words=None if words is None else tuple([Word(*word) for word in words]),
            utterances=tuple([Utterance(*one) for one in utterances]) if utterances else (),
            text_from=text_from,
            from_finalize=line.kind is LineKind.FINALIZED,
        )
    except (ValueError, TypeError) as error:
        raise EntryError(f"A record cannot be read: {error!r}") from error


def encode_error(error: StreamError) -> bytes:
    """Write the body of an ERROR line."""
    return orjson.dumps((error.code.value, error.message))


def decode_error(line: Line) -> StreamError:
    """Read an ERROR line; a code of a newer version is a failure of ours. Raises EntryError."""
    try:
        code, message = orjson.loads(line.body)
        known = ErrorCode(code) if code in ERROR_SPECS else ErrorCode.INTERNAL
        return StreamError(known, str(message))
    except (ValueError, TypeError) as error:
        raise EntryError(f"An error cannot be read: {error!r}") from error
