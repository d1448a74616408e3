"""The keys that a running ingress accepts, from the keys file, which is read again when it changes."""

from __future__ import annotations

import asyncio
import logging
import os
from collections.abc import Callable
from pathlib import Path
from typing import Final

from common.auth.api_key import KeyId, is_key, key_id_of
from common.auth.keys_file import (
    KeyRecord,
    KeysFile,
    KeysFileError,
    KeysFileUnreadError,
    others_can_read,
    read_keys_file,
)

logger = logging.getLogger(__name__)

# Looking at the file's state costs one system call; a revoked key loses its streams within this time.
RELOAD_EVERY_S: Final = 2.0
# A key with an unknown id is compared with this hash, so that an answer takes the same time for every key.
_NO_DIGEST: Final = "0" * 64

_FileState = tuple[int, int, int]


class KeyRing:
    """The keys of one file. The constructor raises KeysFileError where the file cannot be read.

    on_revoked: called with a key's id when the key becomes invalid: revoked, expired or removed.
    """

    def __init__(self, path: Path, on_revoked: Callable[[KeyId], None]) -> None:
        self._path = path
        self._on_revoked = on_revoked
        self._state = self._file_state()
        self._unread = ""
        """Why the file could not be read when it was last looked at."""
        self._keys: KeysFile = read_keys_file(path)
        if others_can_read(path):
            logger.warning("other users can read the keys file %s; mode 0600 keeps them out", path)

    @property
    def token_secret(self) -> str:
        """The secret that signs temporary tokens."""
        return self._keys.token_secret

    def find(self, key: str) -> KeyRecord | None:
        """Return the record of a key, valid or not; None for a key without a record."""
        key_id = key_id_of(key)
        record = self._keys.records.get(key_id) if key_id is not None else None
        if not is_key(key, record.digest if record is not None else _NO_DIGEST):
            return None
        return record

    def record(self, key_id: KeyId) -> KeyRecord | None:
        """Return the record with this id."""
        return self._keys.records.get(key_id)

    async def run(self, now_s: Callable[[], float]) -> None:
        """Watch the file for changes until cancelled. now_s: returns Unix time."""
        valid = self._valid(now_s())
        while True:
            await asyncio.sleep(RELOAD_EVERY_S)
            self._reload()
            still = self._valid(now_s())
            for key_id in valid - still:
                logger.info("the key %s opens nothing any more", key_id)
                self._on_revoked(key_id)
            valid = still

    def _valid(self, now_s: float) -> set[KeyId]:
        return {key_id for key_id, record in self._keys.records.items() if record.is_valid(now_s)}

    def _reload(self) -> None:
        """Read the file again where it has changed; a file with errors changes nothing.

        A file that could not be read is tried again: no change of the file tells that its reader may read it
        now, or has descriptors again.
        """
        state = self._file_state()
        if state == self._state and not self._unread:
            return
        self._state = state
        unread, self._unread = self._unread, ""
        try:
            self._keys = read_keys_file(self._path)
        except KeysFileUnreadError as error:
            self._unread = str(error)
            if self._unread != unread:
                logger.error("the keys stay as they were: %s", error)
        except KeysFileError as error:
            logger.error("the keys stay as they were: %s", error)
        else:
            logger.info("read %d keys from %s", len(self._keys.records), self._path)

    def _file_state(self) -> _FileState | None:
        """Return the file's state; it changes with the content, also when a symbolic link is redirected."""
        try:
            about = os.stat(self._path)  # noqa: PTH116 - follows the link, as opening it does
        except OSError:
            return None
        return about.st_mtime_ns, about.st_size, about.st_ino
