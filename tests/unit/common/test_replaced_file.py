"""A file that is replaced keeps its owner and its mode, and is never half written."""

from __future__ import annotations

import os
import stat
from pathlib import Path
from unittest.mock import Mock

import pytest

from common.auth.api_key import KeyId
from common.auth.keys_file import KeyRecord, KeysFileError, create_key, revoke_key
from common.replaced_file import replace_file
from parakeet.redis_users import ACL_FILE, create_users

# Root may give files to anybody; other users have their own alone.
OTHER = 10001 if os.geteuid() == 0 else os.getuid()
TEMPLATE = KeyRecord(key_id=KeyId(""), digest="", name="desk")


def test_a_new_file_is_its_owners_alone(tmp_path: Path) -> None:
    replace_file(tmp_path / "new", b"text")
    assert (tmp_path / "new").read_bytes() == b"text"
    assert stat.S_IMODE((tmp_path / "new").stat().st_mode) == 0o600
    assert [path.name for path in tmp_path.iterdir()] == ["new"]


def test_owner_and_mode_stay(tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.write_bytes(b"old")
    os.chown(path, OTHER, -1)
    path.chmod(0o640)
    replace_file(path, b"new")
    assert path.read_bytes() == b"new"
    assert (path.stat().st_uid, stat.S_IMODE(path.stat().st_mode)) == (OTHER, 0o640)


def test_the_file_behind_a_link_is_replaced(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"old")
    (tmp_path / "link").symlink_to("file")
    replace_file(tmp_path / "link", b"new")
    assert (tmp_path / "link").is_symlink()
    assert (tmp_path / "file").read_bytes() == b"new"


def test_a_file_that_cannot_be_given_to_its_owner_stays(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "file"
    path.write_bytes(b"old")
    if os.geteuid() == 0:
        os.chown(path, OTHER, -1)
    else:
        about = path.stat()
        monkeypatch.setattr(Path, "stat", lambda _, **__: os.stat_result((*about[:4], OTHER + 1, *about[5:])))
    monkeypatch.setattr("common.replaced_file.os.fchown", Mock(side_effect=PermissionError(1, "no")))
    with pytest.raises(PermissionError):
        replace_file(path, b"new")
    assert path.read_bytes() == b"old"
    assert [path.name for path in tmp_path.iterdir()] == ["file"]


def test_the_service_still_reads_its_keys_when_root_has_revoked_one(tmp_path: Path) -> None:
    path = tmp_path / "keys.json"
    record, _ = create_key(path, TEMPLATE)
    os.chown(path, OTHER, -1)
    revoke_key(path, record.key_id)
    create_key(path, TEMPLATE)
    assert path.stat().st_uid == OTHER
    assert (tmp_path / ".keys.json.lock").stat().st_uid == OTHER


def test_a_key_that_is_not_revoked_is_not_said_to_be(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "keys.json"
    record, _ = create_key(path, TEMPLATE)
    monkeypatch.setattr("common.replaced_file.os.fsync", Mock(side_effect=OSError(28, "No space left")))
    with pytest.raises(KeysFileError, match="cannot be written: No space left"):
        revoke_key(path, record.key_id)


def test_redis_still_reads_its_users_when_root_has_renewed_them(tmp_path: Path) -> None:
    create_users(tmp_path, ["ingress"])
    os.chown(tmp_path / ACL_FILE, OTHER, -1)
    create_users(tmp_path, ["ingress", "worker"])
    assert (tmp_path / ACL_FILE).stat().st_uid == OTHER
    assert "parakeet-worker" in (tmp_path / ACL_FILE).read_text()
