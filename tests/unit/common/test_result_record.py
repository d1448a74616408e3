"""Results as records: read as they were written, of a size that does not depend on the text before them."""

from __future__ import annotations

from dataclasses import replace

import orjson
import pytest
from hypothesis import given
from hypothesis import strategies as st

from common.entries import Line, LineKind, StreamId
from common.errors import ClientFault, EntryError, ErrorCode, Unavailable
from common.messages import Result, Utterance, Word
from common.result_record import decode_error, decode_record, encode_error, encode_record

texts = st.text(st.characters(exclude_categories=["Cs"]), max_size=30)
numbers = st.floats(0, 1e6, allow_nan=False)
words = st.builds(Word, word=texts, start_s=numbers, end_s=numbers, confidence=st.floats(0, 1))
utterances = st.builds(Utterance, number=st.integers(1, 1 << 30), text=texts, start_s=numbers, end_s=numbers)
results = st.builds(
    Result,
    text=texts,
    token_ids=st.lists(st.integers(0, 1 << 20), max_size=4).map(tuple),
    confidence_scores=st.lists(st.floats(0, 1), max_size=4).map(tuple),
    is_final=st.booleans(),
    last_state=st.sampled_from(["speech", "silence", None]),
    turn_detection=st.sampled_from(["start_of_utterance", "running", "pause", "end_of_utterance"]),
    seq=st.integers(1, 1 << 30),
    audio_ack_samples=st.integers(0, 1 << 50),
    words=st.none() | st.lists(words, max_size=3).map(tuple),
    utterances=st.lists(utterances, max_size=2).map(tuple),
)


def line_of(result: Result, body: bytes) -> Line:
    kind = LineKind.FINAL if result.is_final else LineKind.PARTIAL
    return Line(kind, StreamId(1), 1, result.seq, result.audio_ack_samples, body)


@given(texts, results, texts)
def test_a_result_survives_with_the_text_before_it(before: str, said: Result, later: str) -> None:
    whole = replace(said, text=before + said.text)
    body = encode_record(whole, len(before))
    assert b"\n" not in body
    # What is kept of the text may go further by now.
    assert decode_record(line_of(said, body), before + later) == replace(whole, text_from=len(before))


def test_the_text_before_is_not_in_a_record() -> None:
    said = Result("x" * 50_000 + " word", (1,), (0.5,), False, "speech", "running", 9, 100)
    assert len(encode_record(said, 50_000)) < 60


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"{}",
        b"7",
        b"[]",
        b'[0,"a",[],[],null,"running",null]',
        b'["0","a",[],[],null,"running",null,[]]',
        b'[0,7,[],[],null,"running",null,[]]',
        b'[-1,"a",[],[],null,"running",null,[]]',
        b'[0,"a",[],[],null,"running",[["w",0]],[]]',
        b'[4,"a",[],[],null,"running",null,[]]',  # behind the end of the text
    ],
)
def test_what_is_no_record_is_refused(body: bytes) -> None:
    with pytest.raises(EntryError):
        decode_record(Line(LineKind.PARTIAL, StreamId(1), 1, 1, 0, body), "abc")


@pytest.mark.parametrize(
    "error",
    [ClientFault(ErrorCode.BAD_SAMPLES, "Every sample is\nfinite."), Unavailable(ErrorCode.POISON, "Ä")],
)
def test_an_error_survives(error: ClientFault | Unavailable) -> None:
    body = encode_error(error)
    assert b"\n" not in body
    read = decode_error(Line(LineKind.ERROR, StreamId(1), 1, 1, 0, body))
    assert (read.code, read.message) == (error.code, error.message)


def test_an_error_of_a_newer_version_is_a_failure_of_ours() -> None:
    body = orjson.dumps(["from_the_future", "So it is."])
    read = decode_error(Line(LineKind.ERROR, StreamId(1), 1, 1, 0, body))
    assert (read.code, read.message) == (ErrorCode.INTERNAL, "So it is.")
    for other in (b"", b"[]", b'["a"]', b'{"a":1}', b"[[],1]"):
        with pytest.raises(EntryError):
            decode_error(Line(LineKind.ERROR, StreamId(1), 1, 1, 0, other))
