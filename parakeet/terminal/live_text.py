"""Text that changes during speech: on a terminal one line in place, elsewhere a line for each change."""

from __future__ import annotations

import shutil
from typing import TextIO

_CLEAR_LINE = "\r\x1b[K"


class LiveText:
    """Shows partial results on an output, or no output if `partials` is False."""

    def __init__(self, output: TextIO, *, partials: bool = True, prefix: str = "") -> None:
        self._output = output
        self._in_place = output.isatty()
        self._partials = partials
        self._prefix = prefix
        self._shown = ""
        self._kept = 0  # code points of the text that are kept in lines of their own

    def show(self, text: str, before: str = "") -> None:
        """Show the text after the kept part; only its end if the terminal is too narrow for all of it.

        before: text before it in the line, such as a progress bar.
        """
        text = text[self._kept :].lstrip()
        shown = before + text
        if not self._partials or shown == self._shown:
            return
        self._shown = shown
        prefix = self._prefix + before
        if not self._in_place:
            self._output.write(f"{prefix}{text}\n")
        else:
            room = max(8, shutil.get_terminal_size().columns - len(prefix) - 1)
            tail = text if len(text) <= room else "…" + text[-(room - 1) :]
            self._output.write(f"{_CLEAR_LINE}{prefix}{tail}")
        self._output.flush()

    def keep(self, text: str) -> None:
        """On a terminal, keep the text so far in a line of its own; later text begins below it."""
        if not (self._in_place and self._partials):
            return
        line = text[self._kept :].strip()
        self._kept = len(text)
        if line:
            self._output.write(f"{_CLEAR_LINE}{self._prefix}{line}\n")
            self._output.flush()
            self._shown = ""

    def clear(self) -> None:
        """Clear the text that is shown in place."""
        if self._in_place and self._shown:
            self._output.write(_CLEAR_LINE)
            self._output.flush()
        self._shown = ""
