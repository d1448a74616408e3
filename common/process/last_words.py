"""Why a child process ended, for the parent that started it: its last ERROR of the log, in a file of memory.

The parent makes `LastWords`, hands its descriptor down and reads it when the child has ended. The child's
`common.process.logging.configure` finds the descriptor in the environment. Nothing waits for anything: a
child that is killed leaves what it last said.
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
    """The parent's side; `descriptor` is to be inherited by the child."""

    def __init__(self) -> None:
        self.descriptor = os.memfd_create("last-words")
        weakref.finalize(self, os.close, self.descriptor)

    @property
    def environment(self) -> dict[str, str]:
        """What the child's environment needs."""
        return {VARIABLE: str(self.descriptor)}

    def read(self) -> str:
        """Return what the child said last; empty where it said nothing."""
        return os.pread(self.descriptor, _MAX_BYTES, 0).decode(errors="ignore")


class LastWordsHandler(logging.Handler):
    """The child's side: keeps the last record from ERROR on, each in place of the one before."""

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
    """Return the handler for the descriptor that a parent handed down, None where there is none."""
    text = environ.get(VARIABLE, "")
    if not text.isdecimal():
        return None
    try:
        os.fstat(int(text))
    except OSError:
        return None
    return LastWordsHandler(int(text))
