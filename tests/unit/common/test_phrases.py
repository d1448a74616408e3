"""Phrases of a client and of a file: bounds, and sentences that name what is wrong."""

from __future__ import annotations

from pathlib import Path

import pytest

from common.errors import ClientFault, EntryError, ErrorCode, SettingsError
from common.options import StreamOptions, decode_options, encode_options, parse_options
from common.phrases import (
    MAX_FILE_PHRASES,
    Phrase,
    decode_phrases,
    encode_phrases,
    parse_phrases,
    phrases_digest,
    read_phrases_file,
)


def test_strings_and_objects_are_phrases() -> None:
    assert parse_phrases(
        [
            "  Jane \t Doe ",
            {"text": "Zyrtec", "boost": 2},
            {"text": "EKG", "boost": None},
            {"text": "CT 3", "boost": 1, "optional": True},
            {"text": "CT", "optional": False},
        ]
    ) == (
        Phrase("Jane Doe"),
        Phrase("Zyrtec", 2.0),
        Phrase("EKG"),
        Phrase("CT 3", 1.0, optional=True),
        Phrase("CT"),
    )


@pytest.mark.parametrize(
    ("value", "says"),
    [
        ("Zyrtec", 'at most 500 strings or objects with .*, not "Zyrtec"'),
        ({"text": "Zyrtec"}, "not an object"),
        ([3], "not 3 in it"),
        ([None], "not null in it"),
        ([{"boost": 1}], "not an object in it"),
        ([" \t"], 'that can be read, not " .t"'),
        (["a\x00b"], "that can be read"),
        (["\ud800"], "that can be read"),
        (["x" * 201], "at most 200 characters"),
        ([{"text": "Zyrtec", "boost": 10.5}], 'a boost of 0 to 10 for "Zyrtec", not 10.5'),
        ([{"text": "Zyrtec", "boost": -1}], "a boost of 0 to 10"),
        ([{"text": "Zyrtec", "boost": True}], 'a number as the boost of "Zyrtec", not true'),
        ([{"text": "Zyrtec", "boost": "2"}], "a number as the boost"),
        ([{"text": "Zyrtec", "boost": float("nan")}], "a number that is too large"),
        ([{"text": "Zyrtec", "weight": 1}], '"weight" is none of them'),
        ([{"text": "Zyrtec", "optional": 1}], "true or false for 'optional' of \"Zyrtec\", not 1"),
        (["x"] * 501, "at most 500 phrases, not 501"),
        (["ü" * 100] * 100, "at most 16384 bytes of text, not 20000"),
    ],
)
def test_what_is_no_list_of_phrases_is_a_bad_option(value: object, says: str) -> None:
    with pytest.raises(ClientFault, match=says) as caught:
        parse_options({"phrases": value})
    assert caught.value.code is ErrorCode.BAD_OPTION


def test_the_bounds_themselves_are_allowed() -> None:
    assert len(parse_phrases(["x"] * 500)) == 500
    assert len(parse_phrases([{"text": "y" * 128, "boost": 10}] * 128)) == 128
    assert parse_phrases([{"text": "z" * 200, "boost": 0}]) == (Phrase("z" * 200, 0.0),)


def test_phrases_survive_the_record_and_the_log() -> None:
    phrases = (
        Phrase("Jane Doe"),
        Phrase("Zyrtec", 0.0),
        Phrase("naïve", 2.5),
        Phrase("CT 3", optional=True),
        Phrase("CT 4", 1.5, optional=True),
    )
    assert decode_options(encode_options(StreamOptions(phrases=phrases))).phrases == phrases
    assert b"phrases" not in encode_options(StreamOptions()), "an older worker would refuse it"
    assert decode_phrases(encode_phrases(phrases)) == phrases
    assert decode_phrases(encode_phrases(())) == ()
    for bad in (b"{", b'["x"', b"[3]"):
        with pytest.raises(EntryError):
            decode_phrases(bad)


def test_a_file_has_a_phrase_a_line(tmp_path: Path) -> None:
    path = tmp_path / "phrases.txt"
    path.write_text("# names\n\nJane Doe\nZyrtec\t2.5\n", encoding="utf-8-sig")
    assert read_phrases_file(str(path)) == (Phrase("Jane Doe"), Phrase("Zyrtec", 2.5))
    assert read_phrases_file("") == ()


@pytest.mark.parametrize(
    ("text", "says"),
    [
        (b"Jane\nZyrtec\tmuch\n", 'line 2: the boost "much" is not a number'),
        (b"Zyrtec\t11\n", "line 1: .*a boost of 0 to 10"),
        (b"\xff\n", "cannot be read"),
        (b"a\n" * (MAX_FILE_PHRASES + 1), "has 20001 phrases; 20000 may be there"),
        (b"#" * (4 * 1024 * 1024 + 1), "longer than 4194304 bytes"),
        (None, "cannot be read: .*No such file"),
    ],
)
def test_a_wrong_file_is_an_error_that_names_the_line(tmp_path: Path, text: bytes | None, says: str) -> None:
    path = tmp_path / "phrases.txt"
    if text is not None:
        path.write_bytes(text)
    with pytest.raises(SettingsError, match=says):
        read_phrases_file(str(path))


def test_equal_lists_have_one_digest() -> None:
    assert phrases_digest(()) == "none"
    one, other = (Phrase("a"), Phrase("b", 2.0)), (Phrase("a"), Phrase("b", 2.5))
    assert phrases_digest(one) == phrases_digest((Phrase("a"), Phrase("b", 2.0))) != phrases_digest(other)
