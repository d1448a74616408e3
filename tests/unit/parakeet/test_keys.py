"""`parakeet-server keys`, as a person or a script types it."""

from __future__ import annotations

from pathlib import Path

import pytest

from common.auth.api_key import is_key, key_id_of
from common.auth.keys_file import read_keys_file
from parakeet.cli import main


def create(path: Path, capsys: pytest.CaptureFixture[str], *flags: str) -> str:
    assert main(["keys", "create", "--auth-keys-file", str(path), "--name", "desk", *flags]) == 0
    return capsys.readouterr().out


def test_create_prints_the_key_alone(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "keys.json"
    out = create(path, capsys, "--max-streams", "3", "--scope", "mint", "--scope", "stream")
    key = out.removesuffix("\n")
    key_id = key_id_of(key)
    assert key_id is not None
    record = read_keys_file(path).records[key_id]
    assert is_key(key, record.digest)
    assert (record.name, record.max_streams, record.scopes) == ("desk", 3, ("stream", "mint"))


def test_list_shows_state_and_limits_and_no_secret(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "keys.json"
    key = create(path, capsys, "--expires-in-days", "7").strip()
    key_id = key_id_of(key)
    assert main(["keys", "list", "--auth-keys-file", str(path)]) == 0
    header, row = capsys.readouterr().out.splitlines()
    assert header.split()[:3] == ["ID", "NAME", "STATE"]
    assert row.split()[:4] == [key_id, "desk", "valid", "stream"]
    assert key not in row
    assert main(["keys", "revoke", "--auth-keys-file", str(path), str(key_id)]) == 0
    assert main(["keys", "list", "--auth-keys-file", str(path)]) == 0
    assert capsys.readouterr().out.splitlines()[1].split()[2] == "revoked"


@pytest.mark.parametrize(
    ("argv", "status", "sentence"),
    [
        (["create", "--name", "x"], 2, "--auth-keys-file"),
        (["create", "--auth-keys-file", "FILE", "--name", ""], 2, "--name got ''"),
        (["create", "--auth-keys-file", "FILE", "--name", "x", "--max-streams", "-1"], 2, "whole number"),
        (["revoke", "--auth-keys-file", "FILE", "abcdefgh"], 2, "There is no keys file"),
        (["list", "--auth-keys-file", "FILE"], 2, "No such file"),
        (["rotate"], 2, "invalid choice"),
    ],
)
def test_what_is_wrong_is_one_sentence(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], argv: list[str], status: int, sentence: str
) -> None:
    path = str(tmp_path / "keys.json")
    assert main(["keys", *(path if word == "FILE" else word for word in argv)]) == status
    captured = capsys.readouterr()
    assert captured.out == ""
    assert sentence in captured.err
    assert captured.err.count("\n") == 1


def test_a_folder_that_is_not_there_is_told(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "none" / "keys.json"
    assert main(["keys", "create", "--auth-keys-file", str(path), "--name", "x"]) == 2
    assert "No such file" in capsys.readouterr().err
