"""The file of keys: what is written can be read, what is wrong is told, nothing secret is quoted."""

from __future__ import annotations

import stat
import threading
from pathlib import Path

import orjson
import pytest

from common.auth.api_key import KeyId, digest_of, is_key, key_id_of
from common.auth.keys_file import (
    KeyRecord,
    KeysFileError,
    create_key,
    decode_keys_file,
    others_can_read,
    read_keys_file,
    revoke_key,
)
from common.errors import SettingsError

TEMPLATE = KeyRecord(key_id=KeyId(""), digest="", name="shop floor", scopes=("stream", "mint"), max_streams=5)


def test_the_first_key_makes_a_file_that_only_its_owner_reads(tmp_path: Path) -> None:
    path = tmp_path / "keys.json"
    record, key = create_key(path, TEMPLATE)
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert not others_can_read(path)
    assert key_id_of(key) == record.key_id
    stored = read_keys_file(path).records[record.key_id]
    assert stored == record
    assert (stored.name, stored.scopes, stored.max_streams) == ("shop floor", ("stream", "mint"), 5)
    assert is_key(key, stored.digest)
    assert not is_key(key[:-1] + ("A" if key[-1] != "A" else "B"), stored.digest)


def test_the_file_holds_no_key(tmp_path: Path) -> None:
    path = tmp_path / "keys.json"
    _, key = create_key(path, TEMPLATE)
    assert key.split("_", 2)[2].encode() not in path.read_bytes()


def test_a_second_key_keeps_the_first_and_the_secret_of_tokens_and_the_mode(tmp_path: Path) -> None:
    path = tmp_path / "keys.json"
    first, _ = create_key(path, TEMPLATE)
    secret = read_keys_file(path).token_secret
    path.chmod(0o640)
    second, _ = create_key(path, TEMPLATE)
    keys = read_keys_file(path)
    assert list(keys.records) == [first.key_id, second.key_id]
    assert keys.token_secret == secret
    assert stat.S_IMODE(path.stat().st_mode) == 0o640
    assert others_can_read(path)


def test_keys_made_at_the_same_time_are_all_kept(tmp_path: Path) -> None:
    path = tmp_path / "keys.json"
    threads = [threading.Thread(target=create_key, args=(path, TEMPLATE)) for _ in range(16)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(30)
    assert len(read_keys_file(path).records) == 16


def test_a_revoked_key_stays_in_the_file_and_opens_nothing(tmp_path: Path) -> None:
    path = tmp_path / "keys.json"
    record, _ = create_key(path, TEMPLATE)
    revoke_key(path, record.key_id)
    assert not read_keys_file(path).records[record.key_id].is_valid(0.0)
    with pytest.raises(SettingsError, match="has no key 'nokey'"):
        revoke_key(path, "nokey")


def test_a_key_opens_nothing_from_its_end_on() -> None:
    record = KeyRecord(key_id=KeyId("abcdefgh"), digest="", name="n", not_after_s=1000)
    assert record.is_valid(999.9)
    assert not record.is_valid(1000.0)


def test_a_failed_write_leaves_the_file_as_it_was(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "keys.json"
    create_key(path, TEMPLATE)
    before = path.read_bytes()

    def full(_: Path, __: Path) -> Path:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Path, "replace", full)
    with pytest.raises(KeysFileError, match="No space left on device"):
        create_key(path, TEMPLATE)
    assert path.read_bytes() == before
    assert [child.name for child in tmp_path.iterdir() if child.name.endswith(".new")] == []


GOOD = {
    "version": 1,
    "token_secret": "s" * 43,
    "keys": [{"id": "abcdefgh", "sha256": digest_of("key"), "name": "n"}],
}


def changed(**fields: object) -> bytes:
    return orjson.dumps({**GOOD, **fields})


def with_key(**fields: object) -> bytes:
    return changed(keys=[{"id": "abcdefgh", "sha256": digest_of("key"), "name": "n", **fields}])


def test_what_is_not_given_has_a_default() -> None:
    (record,) = decode_keys_file(orjson.dumps(GOOD), "f").records.values()
    assert record == KeyRecord(key_id=KeyId("abcdefgh"), digest=digest_of("key"), name="n")


@pytest.mark.parametrize(
    ("data", "sentence"),
    [
        (b"{", "is not JSON"),
        (b"[]", "no 'version'"),
        (changed(version=2), "no 'version'"),
        (changed(token_secret="short"), "no 'token_secret'"),
        (changed(keys={}), "no list 'keys'"),
        (changed(keys=["x"]), "Key 1 .* no object"),
        (with_key(id="ABC"), "Key 1 .*'id'"),
        (with_key(sha256="12"), "Key 1 .*'sha256'"),
        (with_key(name="a\nb"), "Key 1 .*control"),
        (with_key(name=5), "Key 1 .*'name'"),
        (with_key(scopes=["admin"]), "Key 1 .*'scopes'"),
        (with_key(scopes=[]), "Key 1 .*'scopes'"),
        (with_key(max_streams=-1), "Key 1 .*'max_streams'"),
        (with_key(max_streams=True), "Key 1 .*'max_streams'"),
        (with_key(revoked="no"), "Key 1 .*'revoked'"),
        (changed(keys=GOOD["keys"] * 2), "abcdefgh twice"),  # type: ignore[operator]
    ],
)
def test_what_is_wrong_is_told_in_a_sentence_without_secrets(data: bytes, sentence: str) -> None:
    with pytest.raises(KeysFileError, match=sentence) as raised:
        decode_keys_file(data, "keys.json")
    assert digest_of("key") not in str(raised.value)
    assert "s" * 43 not in str(raised.value)


def test_a_file_that_cannot_be_read_is_told(tmp_path: Path) -> None:
    with pytest.raises(KeysFileError, match="No such file"):
        read_keys_file(tmp_path / "none.json")
