"""Files that are replaced as a whole, by one with the same owner and mode.

A reader sees the old content or the new one. Who changes such a file is often root, and who reads it a
service with a user of its own, which could read nothing of root's with mode 0600.
"""

from __future__ import annotations

import os
import secrets
import stat
from pathlib import Path
from typing import Final

_OWNER_ALONE: Final = 0o600


def replace_file(path: Path, content: bytes) -> None:
    """Replace a file, or make one that its owner alone reads. Raises OSError; the old file then stays.

    Raises PermissionError also where the file is another user's, to whom this process cannot give a file. A
    symbolic link stays: the file that it names is replaced.
    """
    path = path.resolve()
    try:
        old = path.stat()
    except FileNotFoundError:
        old = None
    beside = path.with_name(f".{path.name}.{secrets.token_hex(4)}")
    descriptor = os.open(beside, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, _OWNER_ALONE)
    try:
        with os.fdopen(descriptor, "wb") as file:
            file.write(content)
            if old is not None:
                give_to(file.fileno(), old)
                os.fchmod(file.fileno(), stat.S_IMODE(old.st_mode))
            file.flush()
            os.fsync(file.fileno())
        beside.replace(path)
    except BaseException:
        beside.unlink(missing_ok=True)
        raise


def give_to(descriptor: int, like: os.stat_result) -> None:
    """Give an open file the owner and the group of another. Raises PermissionError."""
    new = os.fstat(descriptor)
    if (new.st_uid, new.st_gid) != (like.st_uid, like.st_gid):
        os.fchown(descriptor, like.st_uid, like.st_gid)
