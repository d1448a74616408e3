"""Standard input, output and error of a command, which may be closed, full, or a pipe without a reader.

A command whose output cannot be written ends without a traceback: silently if the reader has gone
(``parakeet-server status | head -1``), with a sentence if a disk is full.
"""

from __future__ import annotations

import contextlib
import errno
import os
import sys
from collections.abc import Callable
from typing import Final, TextIO

# The status that a shell reports for a program that SIGPIPE ended.
READER_GONE: Final = 128 + 13
OUTPUT_FAILED: Final = 1
_OUTPUT_ERRORS: Final = frozenset({errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EIO, errno.EBADF})


def open_missing() -> None:
    """Open /dev/null in place of each closed standard stream, for this process and programs that it executes.

    A file or socket opened later would otherwise take its number, and receive the printed text.
    """
    for descriptor in (0, 1, 2):
        try:
            os.fstat(descriptor)
        except OSError:
            opened = os.open(os.devnull, os.O_RDWR)
            if opened != descriptor:  # a lower descriptor was closed meanwhile
                os.dup2(opened, descriptor)
                os.close(opened)
            os.set_inheritable(descriptor, True)
    # Python sets a stream to None if it was closed at the start.
    sys.stdin = sys.stdin or open(0, encoding="utf-8", closefd=False)  # noqa: SIM115
    sys.stdout = sys.stdout or open(1, "w", encoding="utf-8", closefd=False)  # noqa: SIM115
    sys.stderr = sys.stderr or open(2, "w", encoding="utf-8", closefd=False)  # noqa: SIM115


def complain(sentence: str) -> None:
    """Write a sentence to stderr; an error of that is ignored."""
    try:
        sys.stderr.write(f"{sentence}\n")
        sys.stderr.flush()
    except (OSError, ValueError):
        _forget(sys.stderr)


def run_command(program: str, run: Callable[[], int]) -> int:
    """Run a command and return its exit status, or the status for output that cannot be written.

    program: its name in a sentence on stderr.
    """
    open_missing()
    try:
        try:
            return run()
        finally:  # also where argparse exits after a help text
            sys.stdout.flush()
    except BrokenPipeError:
        _forget(sys.stdout)
        return READER_GONE
    except OSError as error:
        # An error with a file name is not an error of a standard stream.
        if error.errno not in _OUTPUT_ERRORS or error.filename is not None:
            raise
        _forget(sys.stdout)
        complain(f"{program}: the output cannot be written: {error.strerror}.")
        return OUTPUT_FAILED


def _forget(stream: TextIO) -> None:
    """Redirect a stream's buffer to /dev/null, so that the interpreter does not write it again at exit."""
    with contextlib.suppress(OSError, ValueError):
        null = os.open(os.devnull, os.O_WRONLY)
        os.dup2(null, stream.fileno())
        os.close(null)
