"""`parakeet-server keys`: makes, lists and revokes API keys in a file."""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import NoReturn

from common.auth.api_key import KeyId
from common.auth.keys_file import SCOPES, KeyRecord, check_name, create_key, read_keys_file, revoke_key
from common.errors import SettingsError
from common.settings import PROGRAM

_DAY_S = 86_400


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        raise SettingsError(f"{message}.")


def run_keys(argv: Sequence[str]) -> int:
    """Run one of the subcommands; return the exit status. Raises SettingsError and KeysFileError."""
    arguments = _parser().parse_args(list(argv))
    path = Path(arguments.auth_keys_file)
    if arguments.action == "create":
        record, key = create_key(path, _template(arguments))
        # Only the key goes to stdout, so that a script can read it; its description goes to stderr.
        sys.stderr.write(f"made the key {record.key_id} ({record.name}) in {path}; it is shown only now\n")
        sys.stdout.write(f"{key}\n")
    elif arguments.action == "list":
        sys.stdout.write(_table(list(read_keys_file(path).records.values())))
    else:
        record = revoke_key(path, arguments.id)
        sys.stderr.write(f"revoked the key {record.key_id} ({record.name}) in {path}\n")
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = _Parser(
        prog=f"{PROGRAM} keys", description="Make, list and revoke the keys of clients.", allow_abbrev=False
    )
    actions = parser.add_subparsers(dest="action", required=True, parser_class=_Parser)
    create = actions.add_parser("create", help="make a key and print it; it cannot be shown again")
    listing = actions.add_parser("list", help="list the keys, without their secrets")
    revoke = actions.add_parser("revoke", help="revoke a key; servers end its streams within seconds")
    for action in (create, listing, revoke):
        action.add_argument("--auth-keys-file", required=True, metavar="FILE", help="the file of keys")
    create.add_argument("--name", required=True, metavar="NAME", help="for people and logs: who has the key")
    create.add_argument(
        "--scope",
        action="append",
        choices=SCOPES,
        help="what the key is for; may be given more than once [default: stream]",
    )
    for flag, text in (
        ("--max-streams", "streams at once"),
        ("--new-per-minute", "streams that begin in a minute"),
        ("--audio-seconds-per-day", "seconds of audio in a day (UTC)"),
        ("--expires-in-days", "days after which the key opens nothing"),
    ):
        create.add_argument(
            flag, type=_whole, default=0, metavar="N", help=f"{text} [default: 0, which is no limit]"
        )
    revoke.add_argument("id", metavar="ID", help="the key's id, as `list` shows it")
    return parser


def _whole(text: str) -> int:
    if not (text.isascii() and text.isdigit() and len(text) <= 12):
        raise argparse.ArgumentTypeError(f"got {text!r}, but takes a whole number from 0 on")
    return int(text)


def _template(arguments: argparse.Namespace) -> KeyRecord:
    try:
        check_name(arguments.name)
    except ValueError as error:
        raise SettingsError(f"--name got {arguments.name!r}, but {error}.") from None
    days = arguments.expires_in_days
    return KeyRecord(
        key_id=KeyId(""),
        digest="",
        name=arguments.name,
        scopes=tuple(scope for scope in SCOPES if scope in (arguments.scope or ["stream"])),
        max_streams=arguments.max_streams,
        new_per_minute=arguments.new_per_minute,
        audio_s_per_day=arguments.audio_seconds_per_day,
        not_after_s=int(time.time()) + days * _DAY_S if days else 0,
    )


def _table(records: Sequence[KeyRecord]) -> str:
    rows: list[tuple[str, ...]] = [
        ("ID", "NAME", "STATE", "SCOPES", "STREAMS", "NEW/MIN", "AUDIO S/DAY", "CREATED", "EXPIRES")
    ]
    now_s = time.time()
    for record in records:
        state = "revoked" if record.revoked else "valid" if record.is_valid(now_s) else "expired"
        limits = (record.max_streams, record.new_per_minute, record.audio_s_per_day)
        dates = (record.created_s, record.not_after_s)
        rows.append(
            (
                record.key_id,
                record.name,
                state,
                ",".join(record.scopes),
                *(str(limit) if limit else "-" for limit in limits),
                *(f"{datetime.fromtimestamp(date, UTC):%Y-%m-%d}" if date else "-" for date in dates),
            )
        )
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return "".join(
        "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() + "\n"
        for row in rows
    )
