"""`parakeet-server redis-users`: the users of Redis, with the least rights, for `--aclfile`."""

from __future__ import annotations

import argparse
import hashlib
import re
import secrets
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Final, NoReturn

from common.errors import ServiceError, SettingsError
from common.redis.grants import USERS, acl_file
from common.replaced_file import replace_file
from common.settings import PROGRAM

PASSWORD_FILE: Final = "redis-password"  # noqa: S105 - a name
ACL_FILE: Final = "redis/users.acl"
_PASSWORD_BYTES: Final = 32
_PASSWORD: Final = re.compile(r"[\x21-\x7e]{16,4096}")


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        raise SettingsError(f"{message}.")


def run_redis_users(argv: Sequence[str]) -> int:
    """Run one of the subcommands; return the exit status. Raises SettingsError and ServiceError."""
    parser = _Parser(
        prog=f"{PROGRAM} redis-users",
        description="Users of Redis for ingresses, workers, `serve` and readers; nobody else comes in.",
        allow_abbrev=False,
    )
    actions = parser.add_subparsers(dest="action", required=True, parser_class=_Parser)
    create = actions.add_parser(
        "create",
        help="write the ACL file and a password for each user; passwords that are there already are kept",
    )
    create.add_argument(
        "--folder",
        required=True,
        metavar="FOLDER",
        help=f"gets {ACL_FILE} for Redis' --aclfile, and USER/{PASSWORD_FILE} for --redis-password-file",
    )
    create.add_argument(
        "--user",
        action="append",
        choices=tuple(USERS),
        help="make this one; may be given more than once [default: all]",
    )
    actions.add_parser("list", help="print the users' rules, without passwords")
    arguments = parser.parse_args(list(argv))
    if arguments.action == "list":
        sys.stdout.write("".join(f"{grants.user} {grants.rules}\n" for grants in USERS.values()))
    else:
        create_users(Path(arguments.folder), arguments.user or tuple(USERS))
        sys.stderr.write(f"the users are in {Path(arguments.folder) / ACL_FILE}\n")
    return 0


def create_users(folder: Path, users: Sequence[str] = tuple(USERS)) -> None:
    """Write the ACL file and the passwords that are missing. Raises ServiceError."""
    try:
        digests = {
            name: hashlib.sha256(_password(folder / name / PASSWORD_FILE).encode()).hexdigest()
            for name in users
        }
        _write(folder / ACL_FILE, acl_file(digests))
    except OSError as error:
        raise ServiceError(f"The users cannot be written: {error.filename}: {error.strerror}.") from error


def _password(path: Path) -> str:
    """Return the password in a file, which is created if it is missing."""
    try:
        password = path.read_text(encoding="ascii", errors="replace").rstrip("\n")
    except FileNotFoundError:
        password = secrets.token_urlsafe(_PASSWORD_BYTES)
        _write(path, f"{password}\n")
    if not _PASSWORD.fullmatch(password):
        raise ServiceError(f"{path} must hold a password of at least 16 letters, digits and signs.")
    return password


def _write(path: Path, text: str) -> None:
    """Replace a file, or make one that its owner alone reads."""
    path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    replace_file(path, text.encode("ascii"))
