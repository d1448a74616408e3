"""The keys of a running ingress follow their file."""

from __future__ import annotations

import asyncio
import errno
import logging
import os
from pathlib import Path
from unittest.mock import Mock

import pytest

from common.auth.api_key import KeyId
from common.auth.keys_file import KeyRecord, create_key, revoke_key
from ingress.auth import key_ring
from ingress.auth.key_ring import KeyRing
from tests.waiting import until

pytestmark = pytest.mark.one_loop

TEMPLATE = KeyRecord(key_id=KeyId(""), digest="", name="desk")


@pytest.fixture(autouse=True)
def often(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(key_ring, "RELOAD_EVERY_S", 0.01)


def test_a_key_is_found_by_the_whole_of_it(tmp_path: Path) -> None:
    path = tmp_path / "keys.json"
    record, key = create_key(path, TEMPLATE)
    other, _ = create_key(path, TEMPLATE)
    ring = KeyRing(path, lambda _: None)
    assert ring.find(key) == record
    assert ring.find(key[:-1]) is None
    assert ring.find(key.replace(record.key_id, other.key_id)) is None
    assert ring.find("pk_zzzzzzzz_" + "A" * 43) is None
    assert ring.find("") is None


async def test_new_keys_are_accepted_and_revoked_ones_are_told(tmp_path: Path) -> None:
    path = tmp_path / "keys.json"
    first, first_key = create_key(path, TEMPLATE)
    revoked: list[KeyId] = []
    ring = KeyRing(path, revoked.append)
    following = asyncio.create_task(ring.run(lambda: 0.0))
    second, second_key = create_key(path, TEMPLATE)
    await until(lambda: ring.find(second_key) is not None)
    revoke_key(path, first.key_id)
    await until(lambda: revoked == [first.key_id])
    found = ring.find(first_key)
    assert found is not None
    assert found.revoked
    assert ring.record(second.key_id) == second
    following.cancel()


async def test_a_key_that_expires_is_told(tmp_path: Path) -> None:
    path = tmp_path / "keys.json"
    record, _ = create_key(path, KeyRecord(key_id=KeyId(""), digest="", name="n", not_after_s=100))
    told: list[KeyId] = []
    clock = [99.0]
    following = asyncio.create_task(KeyRing(path, told.append).run(lambda: clock[0]))
    await asyncio.sleep(0)
    clock[0] = 100.0
    await until(lambda: told == [record.key_id])
    following.cancel()


async def test_a_file_that_is_wrong_or_gone_changes_nothing(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    path = tmp_path / "keys.json"
    _, key = create_key(path, TEMPLATE)
    told: list[KeyId] = []
    ring = KeyRing(path, told.append)
    following = asyncio.create_task(ring.run(lambda: 0.0))
    good = path.read_bytes()
    with caplog.at_level(logging.ERROR):
        path.write_bytes(b"{")
        await until(lambda: "is not JSON" in caplog.text)
        path.unlink()
        await until(lambda: "No such file" in caplog.text)
    assert ring.find(key) is not None
    path.write_bytes(good.replace(b'"revoked": false', b'"revoked": true'))
    await until(lambda: len(told) == 1)
    following.cancel()


async def test_a_file_that_cannot_be_read_for_a_while_is_tried_again(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Neither a mode that is mended nor a free descriptor changes the file's size, time or number."""
    path = tmp_path / "keys.json"
    create_key(path, TEMPLATE)
    ring = KeyRing(path, lambda _: None)
    following = asyncio.create_task(ring.run(lambda: 0.0))
    with monkeypatch.context() as patched:
        error = OSError(errno.EMFILE, os.strerror(errno.EMFILE))
        patched.setattr(Path, "open", Mock(side_effect=error))
        # Written without Path.open, as by another process.
        _, key = create_key(tmp_path / "other.json", TEMPLATE)
        (tmp_path / "other.json").replace(path)
        await until(lambda: "Too many open files" in caplog.text)
        await asyncio.sleep(0.05)
        assert caplog.text.count("Too many open files") == 1
    await until(lambda: ring.find(key) is not None)
    following.cancel()


async def test_a_file_swapped_behind_a_link_is_read(tmp_path: Path) -> None:
    """Kubernetes replaces the files of a mounted secret so."""
    for name in ("one", "two"):
        (tmp_path / name).mkdir()
    _, old = create_key(tmp_path / "one" / "keys.json", TEMPLATE)
    _, new = create_key(tmp_path / "two" / "keys.json", TEMPLATE)
    data = tmp_path / "data"
    data.symlink_to("one")
    ring = KeyRing(data / "keys.json", lambda _: None)
    following = asyncio.create_task(ring.run(lambda: 0.0))
    beside = tmp_path / "data.new"
    beside.symlink_to("two")
    beside.replace(data)
    await until(lambda: ring.find(new) is not None)
    assert ring.find(old) is None
    following.cancel()


def test_a_file_that_others_can_read_is_warned_of(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    path = tmp_path / "keys.json"
    create_key(path, TEMPLATE)
    KeyRing(path, lambda _: None)
    assert caplog.text == ""
    path.chmod(0o644)
    KeyRing(path, lambda _: None)
    assert "other users can read" in caplog.text
