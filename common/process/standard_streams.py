"""Standard input, output and error of a command, which may be closed, full, or a pipe that nobody reads.

A command whose output leads nowhere ends without a traceback: quietly where its reader has gone
(``parakeet-server status | head -1``), with a sentence where a disk is full.
"""

from __future__ import annotations

import contextlib
import errno
import os
import sys
from collections.abc import Callable
from typing import Final, TextIO

# As a shell reports a program that SIGPIPE ended.
READER_GONE: Final = 128 + 13
OUTPUT_FAILED: Final = 1
_OUTPUT_ERRORS: Final = frozenset({errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EIO, errno.EBADF})


def open_missing() -> None:
    """Open /dev/null in place of each standard stream that is closed, for this process and those it becomes.

    A file or socket opened later would otherwise take its number, and get what is printed.
    """
    for descriptor in (0, 1, 2):
        try:
            os.fstat(descriptor)
        except OSError:
            opened = os.open(os.devnull, os.O_RDWR)
            if opened != descriptor:  # a lower one was closed meanwhile
                os.dup2(opened, descriptor)
                os.close(opened)
            os.set_inheritable(descriptor, True)
    # Python leaves None where a stream was closed when it started.
    sys.stdin = sys.stdin or open(0, encoding="utf-8", closefd=False)  # noqa: SIM115
    sys.stdout = sys.stdout or open(1, "w", encoding="utf-8", closefd=False)  # noqa: SIM115
    sys.stderr = sys.stderr or open(2, "w", encoding="utf-8", closefd=False)  # noqa: SIM115


def complain(sentence: str) -> None:
    """Write a sentence to stderr; where that cannot be written, nobody is left to tell."""
    try:
        sys.stderr.write(f"{sentence}\n")
        sys.stderr.flush()
    except (OSError, ValueError):
        _forget(sys.stderr)


def run_command(program: str, run: Callable[[], int]) -> int:
    """Run a command and return its exit status, or that of an output which cannot be written.

    program: its name in a sentence on stderr.
    """
    open_missing()
    try:
        try:
            return run()
        finally:  # also where argparse leaves after a help
            sys.stdout.flush()
    except BrokenPipeError:
        _forget(sys.stdout)
        return READER_GONE
    except OSError as error:
        # An error of a file by name is none of a stream that was open.
        if error.errno not in _OUTPUT_ERRORS or error.filename is not None:
            raise
        _forget(sys.stdout)
        complain(f"{program}: the output cannot be written: {error.strerror}.")
        return OUTPUT_FAILED


def _forget(stream: TextIO) -> None:
    """Let what a stream holds go to /dev/null, so that the interpreter does not try again at its end."""
    with contextlib.suppress(OSError, ValueError):
        null = os.open(os.devnull, os.O_WRONLY)
        os.dup2(null, stream.fileno())
        os.close(null)
