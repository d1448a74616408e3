"""Subtitles: where a cue ends, how long it may be, and how the two formats write it."""

from __future__ import annotations

from common.messages import Word
from common.subtitles import Cue, cues, srt, vtt


def _words(text: str, *, each_s: float = 0.3, start_s: float = 0.0) -> list[Word]:
    return [
        Word(word, start_s + at * each_s, start_s + (at + 1) * each_s, 0.9)
        for at, word in enumerate(text.split())
    ]


def test_a_cue_ends_where_its_utterance_ends() -> None:
    words = [*_words("go forward"), *_words("ten meters", start_s=2.0), *_words("stop", start_s=5.0)]
    assert [cue.lines for cue in cues(words, [1.0, 4.0, 6.0])] == [
        ("go forward",),
        ("ten meters",),
        ("stop",),
    ]
    assert [cue.lines for cue in cues(words)] == [("go forward ten meters stop",)]
    # An utterance without a word changes nothing.
    assert [cue.lines for cue in cues(words, [1.0, 1.5, 4.0])] == [
        ("go forward",),
        ("ten meters",),
        ("stop",),
    ]


def test_a_cue_has_two_lines_of_42_characters_and_seven_seconds_at_most() -> None:
    words = _words("seven letters or so and more of them " * 20)
    found = list(cues(words))
    assert " ".join(line for cue in found for line in cue.lines).split() == [word.word for word in words]
    for cue in found:
        assert len(cue.lines) <= 2
        assert all(len(line) <= 42 for line in cue.lines)
        assert cue.end_s - cue.start_s <= 7.0
    slow = list(cues(_words("a b c d e f g h", each_s=2.0)))
    assert [cue.lines for cue in slow] == [("a b c",), ("d e f",), ("g h",)]


def test_a_word_longer_than_a_line_is_cut_and_nothing_is_lost() -> None:
    (cue,) = cues(_words("x" * 60))
    assert cue.lines == ("x" * 42, "x" * 18)


def test_no_words_are_no_cues() -> None:
    assert list(cues([], [1.0])) == []
    assert srt([]) == ""
    assert vtt([]) == "WEBVTT\n\n"


def test_how_they_are_written() -> None:
    found = [Cue(0.0, 1.5, ("go", "forward")), Cue(3661.0419, 3662.9996, ("a < b & c",))]
    assert srt(found) == (
        "1\n00:00:00,000 --> 00:00:01,500\ngo\nforward\n\n2\n01:01:01,042 --> 01:01:03,000\na < b & c\n\n"
    )
    assert vtt(found) == (
        "WEBVTT\n\n00:00:00.000 --> 00:00:01.500\ngo\nforward\n\n"
        "01:01:01.042 --> 01:01:03.000\na &lt; b &amp; c\n\n"
    )
