"""The Lua scripts of the service: a typed function for each script file.

A function of these packages returns the command that runs its script, for any client or pipeline. Its
arguments are the script's arguments, with the same names, and its docstring says what the script replies.
Each file begins with its purpose and with names for KEYS and ARGV; code that several files use is in
prelude.lua.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache
from pathlib import Path
from typing import Final

from common.redis.connect import Argument

Command = tuple[Argument, ...]

FOLDER: Final = Path(__file__).parent

# Epochs, or connections, that a server may have forgotten of one stream in its last moments, and many more
# (see `server_run` in prelude.lua).
FORGOTTEN_NUMBERS: Final = 1000


@cache
def text_of(name: str) -> str:
    """Return the text of a script by its file's name: the prelude and the file, without comments."""
    files = (FOLDER / "prelude.lua", FOLDER / f"{name}.lua")
    lines = (line for file in files for line in file.read_text().splitlines())
    return "\n".join(line for line in lines if line and not line.lstrip().startswith("--"))


def run(name: str, keys: Sequence[bytes], *arguments: Argument) -> Command:
    """Return the command that runs a script, for the typed functions."""
    return ("EVAL", text_of(name), len(keys), *keys, *arguments)
