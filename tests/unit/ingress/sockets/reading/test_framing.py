"""Bounded newline framing."""

from __future__ import annotations

import pytest

from ingress.sockets.framing import LineReader


def lines(reader: LineReader, data: bytes) -> list[bytes]:
    """The lines that are whole once `data` has come."""
    reader.feed(data)
    found = []
    while (line := reader.next()) is not None:
        found.append(line)
    return found


def test_lines_over_several_reads() -> None:
    reader = LineReader(100)
    assert lines(reader, b'{"a"') == []
    assert len(reader._held) == 4
    assert lines(reader, b':1}\n{"b":2}\n{"c"') == [b'{"a":1}', b'{"b":2}']
    assert lines(reader, b":3}\n") == [b'{"c":3}']
    assert not reader._held


def test_who_takes_lines_may_stop_in_the_middle_of_a_read() -> None:
    reader = LineReader(100)
    reader.feed(b"one\ntwo\nthr")
    assert reader.next() == b"one"
    assert len(reader._held) == 7
    assert lines(reader, b"ee\n") == [b"two", b"three"]


def test_the_short_cut_takes_one_whole_line_and_nothing_else() -> None:
    reader = LineReader(5)
    assert reader.whole(b"12345\n") == b"12345"
    for data in (b"", b"\n", b"\r\n", b"12345", b"123456\n", b"1\n2\n", b"1\n2"):
        assert reader.whole(data) is None
    reader.feed(b"1")
    assert reader.whole(b"2\n") is None  # it would be the end of a line
    assert lines(reader, b"2\n") == [b"12"]
    lines(reader, b"1234567")
    assert reader.too_long
    assert reader.whole(b"1\n") is None


def test_blank_lines_are_keep_alives() -> None:
    assert lines(LineReader(100), b"\n\r\n{}\r\n\n") == [b"{}\r"]


@pytest.mark.parametrize("cut", [(b"12345\n1234", b"56\nnext\n"), (b"12345\n123456\nnext\n",)])
def test_a_line_of_the_longest_length_passes_and_one_byte_more_does_not(cut: tuple[bytes, ...]) -> None:
    reader = LineReader(5)
    assert [line for data in cut for line in lines(reader, data)] == [b"12345"]
    assert reader.too_long
    assert lines(reader, b"next\n") == []


def test_a_line_without_end_is_held_to_the_bound_only() -> None:
    reader = LineReader(1000)
    for _ in range(1000):
        assert lines(reader, b"x" * 64) == []
    assert reader.too_long
    assert not reader._held


def test_what_stands_after_the_last_newline_counts_at_the_end() -> None:
    reader = LineReader(100)
    assert lines(reader, b"one\ntwo") == [b"one"]
    assert reader.rest() == b"two"
    assert reader.rest() is None
