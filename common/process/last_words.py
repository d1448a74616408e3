"""The last words of a child process: its last ERROR of the log, in a memory file that its parent reads.

The parent makes `LastWords`, passes its descriptor to the child and reads it when the child has ended. The
child's `common.process.logging.configure` finds the descriptor in the environment. Neither side waits for the
other: a child that is killed leaves its last record.
"""

from __future__ import annotations

import logging
import os
import weakref
from collections.abc import Mapping
from typing import Final

VARIABLE: Final = "PARAKEET_LAST_WORDS_FD"
_MAX_BYTES: Final = 2000


class LastWords:
    """The parent's side; the child has to inherit `descriptor`."""

    def __init__(self) -> None:
        self.descriptor = os.memfd_create("last-words")
        weakref.finalize(self, os.close, self.descriptor)

    @property
    def environment(self) -> dict[str, str]:
        """Return the variables for the child's environment."""
        return {VARIABLE: str(self.descriptor)}

    def read(self) -> str:
        """Return the child's last record; empty where there is none."""
        return os.pread(self.descriptor, _MAX_BYTES, 0).decode(errors="ignore")


class LastWordsHandler(logging.Handler):
    """The child's side: keeps the last record of level ERROR or above."""

    def __init__(self, descriptor: int) -> None:
        super().__init__(logging.ERROR)
        self._descriptor = descriptor

    def emit(self, record: logging.LogRecord) -> None:
        try:
            said = record.getMessage()
            if record.exc_info and (error := record.exc_info[1]) is not None:
                said = f"{said}: {type(error).__name__}: {error}"
            data = said.encode(errors="replace")[:_MAX_BYTES]
            os.ftruncate(self._descriptor, 0)
            os.pwrite(self._descriptor, data, 0)
        except Exception:
            self.handleError(record)


def inherited_handler(environ: Mapping[str, str]) -> LastWordsHandler | None:
    """Return the handler for the descriptor that a parent passed down, None where there is none."""
    text = environ.get(VARIABLE, "")
    if not text.isdecimal():
        return None
    try:
        os.fstat(int(text))
    except OSError:
        return None
    return LastWordsHandler(int(text))
