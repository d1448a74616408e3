"""The typed table of stream options."""

from __future__ import annotations

import re
from dataclasses import fields
from pathlib import Path

import pytest

from common.errors import ClientFault, EntryError, ErrorCode
from common.options import OPTIONS, Option, StreamOptions, decode_options, encode_options, parse_options
from common.settings import WorkerSettings


def test_options_parse_into_the_dataclass() -> None:
    assert parse_options({}) == StreamOptions()
    assert parse_options({"words": True}) == StreamOptions(words=True)


def test_an_unknown_option_names_those_there_are() -> None:
    with pytest.raises(ClientFault) as caught:
        parse_options({"wrods": True})
    assert caught.value.code is ErrorCode.UNKNOWN_OPTION
    assert "words" in caught.value.message


@pytest.mark.parametrize(
    ("option", "value", "says"),
    [
        (Option("n", int, "", minimum=1, maximum=5), 6, "an integer of 1 to 5, not 6"),
        (Option("n", int, "", minimum=1), True, "at least 1, not true"),
        (Option("x", float, "", maximum=2), 2.5, "at most 2, not 2.5"),
        (Option("x", float, "", maximum=0.95), 2, "at most 0.95, not 2."),
        (Option("x", float, ""), float("inf"), "a number, not a number that is too large"),
        (Option("s", str, "", choices=("a", "b")), "c", "one of 'a', 'b', not \"c\""),
        (Option("s", str, "", maximum=3), "abcd", "at most 3 characters"),
        (Option("b", bool, ""), 1, "true or false, not 1"),
    ],
)
def test_a_wrong_value_says_what_the_option_takes(option: Option, value: object, says: str) -> None:
    with pytest.raises(ClientFault) as caught:
        option.check(value)
    assert caught.value.code is ErrorCode.BAD_OPTION
    assert says in caught.value.message


def test_finals_of_utterances_need_turn_detection() -> None:
    for both in (True, None):
        values = {"auto_finalize": True, "turn_detection": both}
        options = parse_options({name: value for name, value in values.items() if value is not None})
        assert options == StreamOptions(auto_finalize=True, turn_detection=both)
    assert not parse_options({"auto_finalize": False, "turn_detection": False}).auto_finalize
    with pytest.raises(ClientFault, match="'auto_finalize' needs 'turn_detection'") as caught:
        parse_options({"auto_finalize": True, "turn_detection": False})
    assert caught.value.code is ErrorCode.BAD_OPTION


def test_right_values_come_out_in_the_options_type() -> None:
    value = Option("x", float, "", minimum=0).check(2)
    assert value == 2.0
    assert type(value) is float
    assert Option("s", str, "", minimum=1).check("a") == "a"


def test_options_survive_the_record_of_a_stream() -> None:
    options = StreamOptions(words=True, resume=True)
    assert decode_options(encode_options(options)) == options
    assert encode_options(options) == b'{"words":true,"resume":true}', "older workers refuse names"
    assert encode_options(StreamOptions()) == b"{}"
    for broken in (b"[]", b"{", b'{"from_the_future":1}'):
        with pytest.raises(EntryError):
            decode_options(broken)


_DECIDED_ELSEWHERE = {"sample_rate", "language"}


def test_a_default_that_is_none_stands_for_a_flag_of_the_worker() -> None:
    """docs/protocol.md says so of every option whose default is a dash, but for two that it names."""
    without = {field.name for field in fields(StreamOptions) if field.default is None}
    assert without - _DECIDED_ELSEWHERE <= {field.name for field in fields(WorkerSettings)}


_SET_BY_THE_TYPESCRIPT_CLIENT = {"sample_rate", "encoding", "resume"}


def test_the_typescript_client_has_every_option_but_those_that_it_sets_itself() -> None:
    source = (Path(__file__).parents[3] / "clients" / "typescript" / "src" / "messages.ts").read_text()
    interface = source.split("export interface ConfigOptions {")[1].split("}")[0]
    written = dict(re.findall(r"(\w+)\?: (.+);", interface))
    assert set(written) == {option.name for option in OPTIONS} - _SET_BY_THE_TYPESCRIPT_CLIENT
    types = {bool: "boolean", int: "number", float: "number"}
    for option in OPTIONS:
        if option.name in written and option.kind in types:
            assert written[option.name] == types[option.kind], option.name
