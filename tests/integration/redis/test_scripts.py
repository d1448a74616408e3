"""Every script is a file that compiles, says what it does, and is run by one typed function."""

from __future__ import annotations

import re

import pytest

from common.redis.scripts import FOLDER, text_of
from tests.servers import raw_client

NAMES = sorted(
    str(path.relative_to(FOLDER).with_suffix("")) for path in FOLDER.rglob("*.lua") if path.stem != "prelude"
)


def test_each_file_is_run_by_one_function() -> None:
    run = [name for path in FOLDER.rglob("*.py") for name in re.findall(r'"(\w+/\w+)"', path.read_text())]
    assert sorted(run) == NAMES


@pytest.mark.parametrize("name", NAMES)
def test_a_file_says_what_it_does_and_names_its_keys(name: str) -> None:
    lines = (FOLDER / f"{name}.lua").read_text().splitlines()
    assert lines[0].startswith("-- ")
    assert all(len(line) <= 120 for line in lines)
    sent = text_of(name)
    assert "-- " not in sent
    for line in sent.splitlines():
        assert not re.search(r"KEYS\[[2-9]\]", line) or line.startswith("local "), "keys have names"


def test_all_compile(redis_url: str) -> None:
    client = raw_client(redis_url)
    for name in NAMES:
        assert client.script_load(text_of(name))
    client.script_flush()
    client.close()
