"""`redis-users`: the ACL file and the passwords beside it."""

from __future__ import annotations

import hashlib
from pathlib import Path

import pytest

from common.errors import ServiceError, SettingsError
from common.redis.grants import USERS
from parakeet.redis_users import run_redis_users


def test_only_the_users_that_are_asked_for_are_made(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = tmp_path / "users"
    assert run_redis_users(["create", "--folder", str(folder), "--user", "worker", "--user", "reader"]) == 0
    assert sorted(path.name for path in folder.iterdir()) == ["reader", "redis", "worker"]
    first, *users = (folder / "redis" / "users.acl").read_text().splitlines()
    assert first == "user default off"
    for name, line in zip(("worker", "reader"), users, strict=True):
        password = (folder / name / "redis-password").read_text().strip()
        assert len(password) >= 40
        digest = hashlib.sha256(password.encode()).hexdigest()
        assert line == f"user {USERS[name].user} on #{digest} {USERS[name].rules}"
        assert password not in capsys.readouterr().err
    assert (folder / "worker").stat().st_mode & 0o777 == 0o700


def test_a_password_of_ones_own_is_kept(tmp_path: Path) -> None:
    path = tmp_path / "ingress" / "redis-password"
    path.parent.mkdir()
    path.write_text("chosen-by-somebody-else\n")
    run_redis_users(["create", "--folder", str(tmp_path), "--user", "ingress"])
    assert path.read_text() == "chosen-by-somebody-else\n"
    digest = hashlib.sha256(b"chosen-by-somebody-else").hexdigest()
    assert f"#{digest} " in (tmp_path / "redis" / "users.acl").read_text()


@pytest.mark.parametrize(
    "content", [b"short", b"two words, which an ACL file cannot hold", b"\xff" * 20, b""]
)
def test_what_is_no_password_is_refused(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "ingress" / "redis-password"
    path.parent.mkdir()
    path.write_bytes(content)
    with pytest.raises(ServiceError, match=f"{path} must hold a password of at least 16"):
        run_redis_users(["create", "--folder", str(tmp_path)])
    assert not (tmp_path / "redis").exists()


def test_a_folder_that_cannot_be_made_is_told(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(ServiceError, match=r"cannot be written: .*Not a directory"):
        run_redis_users(["create", "--folder", str(tmp_path / "file")])


def test_the_rules_are_listed_without_passwords(capsys: pytest.CaptureFixture[str]) -> None:
    assert run_redis_users(["list"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines == [f"{grants.user} {grants.rules}" for grants in USERS.values()]


@pytest.mark.parametrize("argv", [[], ["create"], ["create", "--folder", "x", "--user", "nobody"], ["drop"]])
def test_a_wrong_command_line_is_one_sentence(argv: list[str]) -> None:
    with pytest.raises(SettingsError) as raised:
        run_redis_users(argv)
    assert "\n" not in str(raised.value)
