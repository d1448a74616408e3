"""Writes docs/flags.md from the table of flags: `python -m common.settings.docs`."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Final

from common.settings.table import COMMANDS, FLAGS, Flag

DOCUMENT: Final = Path(__file__).parents[2] / "docs" / "flags.md"
_HEAD: Final = """# Flags

Every flag of `parakeet-server COMMAND`, with its environment variable and its default. A flag overrides its
variable, and a variable overrides the default; an empty variable counts as none. Wrong values are refused
before anything starts. `keys`, `redis-users`, `model` and `bench` have flags of their own (`--help`).

This file is written from the code by `python -m common.settings.docs`.
"""


def document() -> str:
    """Return the content of docs/flags.md."""
    groups: dict[str, list[Flag]] = {}
    for flag in FLAGS:
        groups.setdefault(flag.group, []).append(flag)
    parts = [_HEAD]
    for group, flags in groups.items():
        parts += [f"## {group}\n", _table(flags), ""]
    return "\n".join(parts)


def _table(flags: list[Flag]) -> str:
    rows = ["| flag | variable | default | commands | meaning |", "|---|---|---|---|---|"]
    for flag in flags:
        commands = ", ".join(command for command in COMMANDS if command in flag.commands)
        metavar = flag.metavar.replace("|", "\\|")
        rows.append(
            f"| `{flag.option} {metavar}` | `{flag.variable}` | {_default(flag)} | {commands} | {flag.help} |"
        )
    return "\n".join(rows)


def _default(flag: Flag) -> str:
    text = f"`{flag.default}`" if flag.default else "none"
    others = (
        f"`{value}` ({command})" if value else f"none ({command})"
        for command, value in flag.command_defaults.items()
    )
    return ", ".join((text, *others))


if __name__ == "__main__":
    DOCUMENT.write_text(document())
    sys.stdout.write(f"wrote {DOCUMENT}\n")
