"""Bounded newline framing."""

from __future__ import annotations

from ingress.framing import LineReader


def test_lines_over_several_reads() -> None:
    reader = LineReader(100)
    assert reader.feed(b'{"a"') == []
    assert reader.held_bytes == 4
    assert reader.feed(b':1}\n{"b":2}\n{"c"') == [b'{"a":1}', b'{"b":2}']
    assert reader.feed(b":3}\n") == [b'{"c":3}']
    assert reader.held_bytes == 0


def test_blank_lines_are_keep_alives() -> None:
    assert LineReader(100).feed(b"\n\r\n{}\r\n\n") == [b"{}\r"]


def test_a_line_of_the_longest_length_passes_and_one_byte_more_does_not() -> None:
    reader = LineReader(5)
    seen = [(reader.feed(data), reader.too_long) for data in (b"12345\n1234", b"56\nnext\n")]
    assert seen == [([b"12345"], False), ([], True)]
    assert reader.feed(b"next\n") == []


def test_a_line_without_end_is_held_to_the_bound_only() -> None:
    reader = LineReader(1000)
    for _ in range(1000):
        reader.feed(b"x" * 64)
    assert reader.too_long
    assert reader.held_bytes == 0


def test_what_stands_after_the_last_newline_counts_at_the_end() -> None:
    reader = LineReader(100)
    reader.feed(b"one\ntwo")
    assert reader.finish() == [b"two"]
    assert reader.finish() == []
