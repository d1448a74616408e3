"""The file of API keys: JSON, with a digest of each key and what the key may do.

Servers read it (`--auth-keys-file`), and `parakeet-server keys` changes it. A change replaces the whole
file, so a reader sees the old one or the new one. The file also holds the secret that signs temporary
tokens: ingresses that share the file accept each other's tokens.
"""

from __future__ import annotations

import fcntl
import os
import re
import secrets
import stat
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Final

import orjson

from common.auth.api_key import KEY_ID_PATTERN, KeyId, digest_of, new_api_key
from common.errors import SettingsError
from common.replaced_file import give_to, replace_file

FILE_VERSION: Final = 1
SCOPES: Final = ("stream", "status", "mint")
"""The scopes of keys: to stream audio, to read the status, to make temporary tokens."""

_MAX_FILE_BYTES: Final = 16 << 20
_MAX_NAME: Final = 64
_DIGEST: Final = re.compile(r"[0-9a-f]{64}")
_NAME: Final = re.compile(r"[^\x00-\x1f\x7f]+")
_TOKEN_SECRET: Final = re.compile(r"[A-Za-z0-9_-]{43,}")


class KeysFileError(SettingsError):
    """The keys file cannot be read, or is not valid."""


class KeysFileUnreadError(KeysFileError):
    """The keys file cannot be read now: what is wrong is not in the file."""


@dataclass(frozen=True, slots=True, kw_only=True)
class KeyRecord:
    """One key.

    digest: SHA-256 of the key. name: for people, in logs. scopes: of `SCOPES`.
    max_streams: streams at once; new_per_minute: streams that begin in a minute; audio_s_per_day: seconds of
    audio in a day (UTC); each 0 for no limit. created_s, not_after_s: Unix time, not_after_s 0 for never.
    """

    key_id: KeyId
    digest: str
    name: str
    scopes: tuple[str, ...] = ("stream",)
    max_streams: int = 0
    new_per_minute: int = 0
    audio_s_per_day: int = 0
    created_s: int = 0
    not_after_s: int = 0
    revoked: bool = False

    def is_valid(self, now_s: float) -> bool:
        """Return whether the key is valid at this time."""
        return not self.revoked and not (self.not_after_s and now_s >= self.not_after_s)

    @property
    def is_limited(self) -> bool:
        """Return whether the key has a limit."""
        return bool(self.max_streams or self.new_per_minute or self.audio_s_per_day)

    def fields(self) -> dict[str, Any]:
        """Return the record in the file's format."""
        return {
            "id": self.key_id,
            "sha256": self.digest,
            "name": self.name,
            "scopes": list(self.scopes),
            "max_streams": self.max_streams,
            "new_per_minute": self.new_per_minute,
            "audio_s_per_day": self.audio_s_per_day,
            "created_s": self.created_s,
            "not_after_s": self.not_after_s,
            "revoked": self.revoked,
        }


@dataclass(frozen=True, slots=True)
class KeysFile:
    """The content of a keys file. token_secret: signs temporary tokens."""

    token_secret: str
    records: Mapping[KeyId, KeyRecord]

    def encode(self) -> bytes:
        """Return the file's bytes."""
        document = {
            "version": FILE_VERSION,
            "token_secret": self.token_secret,
            "keys": [record.fields() for record in self.records.values()],
        }
        return orjson.dumps(document, option=orjson.OPT_INDENT_2 | orjson.OPT_APPEND_NEWLINE)


def read_keys_file(path: Path) -> KeysFile:
    """Read a keys file. Raises KeysFileError with one sentence that never quotes a digest or the secret."""
    try:
        with path.open("rb") as file:
            data = file.read(_MAX_FILE_BYTES + 1)
    except OSError as error:
        raise KeysFileUnreadError(f"The keys file {path} cannot be read: {error.strerror}.") from None
    if len(data) > _MAX_FILE_BYTES:
        raise KeysFileError(f"The keys file {path} is longer than {_MAX_FILE_BYTES} bytes.")
    return decode_keys_file(data, str(path))


def decode_keys_file(data: bytes, name: str) -> KeysFile:
    """Read the bytes of a keys file; errors mention the file as `name`. Raises KeysFileError."""
    try:
        document = orjson.loads(data)
    except orjson.JSONDecodeError as error:
        raise KeysFileError(f"The keys file {name} is not JSON (line {error.lineno}).") from None
    if not isinstance(document, dict) or document.get("version") != FILE_VERSION:
        raise KeysFileError(f"The keys file {name} has no 'version': {FILE_VERSION}.")
    secret = document.get("token_secret")
    if not isinstance(secret, str) or not _TOKEN_SECRET.fullmatch(secret):
        raise KeysFileError(f"The keys file {name} has no 'token_secret' of 43 or more characters.")
    rows = document.get("keys")
    if not isinstance(rows, list):
        raise KeysFileError(f"The keys file {name} has no list 'keys'.")
    records: dict[KeyId, KeyRecord] = {}
    for number, row in enumerate(rows, 1):
        try:
            record = _record(row)
        except (KeyError, TypeError, ValueError) as error:
            raise KeysFileError(f"Key {number} of the keys file {name} is wrong: {error}.") from None
        if record.key_id in records:
            raise KeysFileError(f"The keys file {name} has the id {record.key_id} twice.")
        records[record.key_id] = record
    return KeysFile(secret, records)


def _record(row: object) -> KeyRecord:
    if not isinstance(row, dict):
        raise TypeError("it is no object")
    key_id, digest, name = (_text(row, field) for field in ("id", "sha256", "name"))
    if not KEY_ID_PATTERN.fullmatch(key_id):
        raise ValueError("'id' is no id of a key")
    if not _DIGEST.fullmatch(digest):
        raise ValueError("'sha256' is not 64 hexadecimal digits")
    check_name(name)
    scopes = row.get("scopes", ["stream"])
    if not isinstance(scopes, list) or not scopes or not set(scopes) <= set(SCOPES):
        raise ValueError(f"'scopes' is not a list of {', '.join(SCOPES)}")
    revoked = row.get("revoked", False)
    if not isinstance(revoked, bool):
        raise TypeError("'revoked' is neither true nor false")
    return KeyRecord(
        key_id=KeyId(key_id),
        digest=digest,
        name=name,
        scopes=tuple(scopes),
        max_streams=_count(row, "max_streams"),
        new_per_minute=_count(row, "new_per_minute"),
        audio_s_per_day=_count(row, "audio_s_per_day"),
        created_s=_count(row, "created_s"),
        not_after_s=_count(row, "not_after_s"),
        revoked=revoked,
    )


def check_name(name: str) -> None:
    """Raise ValueError for a name that a key cannot have: names are shown in logs and in tables."""
    if not _NAME.fullmatch(name) or len(name) > _MAX_NAME:
        raise ValueError(f"a name has 1 to {_MAX_NAME} characters, and no control characters")


def _text(row: Mapping[str, object], field: str) -> str:
    value = row.get(field)
    if not isinstance(value, str):
        raise TypeError(f"'{field}' is missing or no text")
    return value


def _count(row: Mapping[str, object], field: str) -> int:
    value = row.get(field, 0)
    if not isinstance(value, int) or isinstance(value, bool) or not 0 <= value < 1 << 53:
        raise ValueError(f"'{field}' is no whole number from 0 on")
    return value


def others_can_read(path: Path) -> bool:
    """Return whether the file's mode lets users other than its owner and root read it."""
    return bool(path.stat().st_mode & (stat.S_IRGRP | stat.S_IROTH))


# Changes


def create_key(path: Path, template: KeyRecord) -> tuple[KeyRecord, str]:
    """Add a key with the name, scopes and limits of `template`; return its record and the key.

    Creates the file (mode 0600) if there is none. Raises KeysFileError.
    """
    with _changing(path) as (before, write):
        keys = before or KeysFile(secrets.token_urlsafe(32), {})
        key_id, key = new_api_key()
        while key_id in keys.records:
            key_id, key = new_api_key()
        record = replace(
            template, key_id=key_id, digest=digest_of(key), created_s=int(time.time()), revoked=False
        )
        write(replace(keys, records={**keys.records, key_id: record}))
    return record, key


def revoke_key(path: Path, key_id: str) -> KeyRecord:
    """Revoke a key and return its record. Raises SettingsError for an unknown id, KeysFileError."""
    with _changing(path) as (keys, write):
        if keys is None:
            raise KeysFileError(f"There is no keys file {path}.")
        record = keys.records.get(KeyId(key_id))
        if record is None:
            raise SettingsError(f"The keys file {path} has no key {key_id!r}.")
        revoked = replace(record, revoked=True)
        write(replace(keys, records={**keys.records, revoked.key_id: revoked}))
    return revoked


@contextmanager
def _changing(path: Path) -> Iterator[tuple[KeysFile | None, Callable[[KeysFile], None]]]:
    """Lock out other changes; yield the content (None without a file) and what replaces it."""
    try:
        lock = os.open(path.with_name(f".{path.name}.lock"), os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    except OSError as error:
        raise KeysFileError(f"The folder of the keys file {path} takes no file: {error.strerror}.") from None
    try:
        fcntl.flock(lock, fcntl.LOCK_EX)
        exists = path.exists()
        try:
            if exists:
                with suppress(PermissionError):  # the file's owner may change it another time
                    give_to(lock, path.stat())
            yield (
                (read_keys_file(path) if exists else None),
                lambda keys: replace_file(path, keys.encode()),
            )
        except OSError as error:
            raise KeysFileError(f"The keys file {path} cannot be written: {error.strerror}.") from None
    finally:
        os.close(lock)
