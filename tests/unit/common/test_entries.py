"""What travels through Redis is read as it was written, and nothing else is."""

from __future__ import annotations

from dataclasses import replace

import orjson
import pytest
from hypothesis import given
from hypothesis import strategies as st

from common.entries import (
    AudioEntry,
    IngressId,
    Line,
    LineKind,
    StreamId,
    audio_entry_id,
    decode_assignment,
    decode_audio_entry,
    decode_error,
    decode_lines,
    decode_record,
    decode_result_entry,
    encode_error,
    encode_record,
    join_lines,
    next_entry_id,
    pack_line,
)
from common.errors import ClientFault, EntryError, ErrorCode, Unavailable
from common.messages import Encoding, Result, Utterance, Word
from common.phrases import Phrase

entries = st.builds(
    AudioEntry,
    entry_id=st.builds(audio_entry_id, st.integers(1, 1 << 40), st.integers(1, 1 << 40)),
    first_sample=st.integers(0, 1 << 40),
    payload=st.binary(max_size=40).map(lambda data: data[: len(data) // 4 * 4]),
    encoding=st.sampled_from(Encoding),
    final=st.booleans(),
    ingress=st.none() | st.from_regex(r"[A-Za-z0-9._-]{1,64}", fullmatch=True).map(IngressId),
    phrases=st.none() | st.just(()) | st.just((Phrase("Jane Doe"), Phrase("Zyrtec", 2.5))),
)
lines = st.builds(
    Line,
    kind=st.sampled_from(LineKind),
    stream=st.integers(1, 1 << 60).map(StreamId),
    epoch=st.integers(0, 1 << 30),
    seq=st.integers(0, 1 << 30),
    acked=st.integers(0, 1 << 50),
    body=st.binary(max_size=60).filter(lambda data: b"\n" not in data),
)


@given(entries)
def test_audio_entries_survive_redis(entry: AudioEntry) -> None:
    read = decode_audio_entry(entry.entry_id, [bytes(part) for part in entry.fields()])
    if not entry.payload:  # then the encoding says nothing
        assert read.encoding is Encoding.PCM16
        read = replace(read, encoding=entry.encoding)
    assert read == entry


@given(st.lists(lines, min_size=1, max_size=5))
def test_lines_survive_a_publication(published: list[Line]) -> None:
    packed = [
        pack_line(line.kind, line.stream, line.epoch, line.seq, line.acked, line.body) for line in published
    ]
    assert decode_lines(join_lines(packed)) == published


@given(lines)
def test_results_survive_the_log(line: Line) -> None:
    entry_id = b"%d-%d" % (line.epoch, line.seq)
    assert (
        decode_result_entry(
            line.stream, entry_id, (b"k", line.kind, b"a", b"%d" % line.acked, b"d", line.body)
        )
        == line
    )


def test_the_payload_of_an_entry_is_not_copied() -> None:
    payload = memoryview(b"\1\0\2\0")
    assert any(part is payload for part in AudioEntry(b"1-1", 0, payload).fields())


@pytest.mark.parametrize(
    ("entry_id", "flat"),
    [
        (b"1-1", [b"p", b"ab"]),  # says not where it begins
        (b"1-1", [b"o", b"0", b"q", b"ab"]),  # a field of another version
        (b"1-1", [b"o", b"zero"]),
        (b"1-1", [b"o"]),
    ],
)
def test_other_audio_entries_are_refused(entry_id: bytes, flat: list[bytes]) -> None:
    with pytest.raises(EntryError):
        decode_audio_entry(entry_id, flat)


@pytest.mark.parametrize("flat", [[], [b"sid", b"1"], [b"sid", b"x", b"v", b"1"]])
def test_other_assignments_are_refused(flat: list[bytes]) -> None:
    with pytest.raises(EntryError):
        decode_assignment(b"5-0", flat)


@pytest.mark.parametrize("payload", [b"", b"p 1 1 1", b"z 1 1 1 {}", b"p one 1 1 {}"])
def test_other_lines_are_refused(payload: bytes) -> None:
    with pytest.raises(EntryError):
        decode_lines(payload)


def test_the_next_entry_id_is_the_smallest_behind() -> None:
    assert next_entry_id(b"2-41") == b"2-42"


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
