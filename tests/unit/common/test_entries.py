"""What travels through Redis is read as it was written, and nothing else is."""

from __future__ import annotations

from dataclasses import replace

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
    decode_lines,
    decode_result_entry,
    join_lines,
    next_entry_id,
    pack_line,
)
from common.errors import EntryError
from common.messages import Encoding
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
