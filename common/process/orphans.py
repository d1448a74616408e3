"""What a child process does about the end of its parent, beside noticing that their pipe or socket ends."""

from __future__ import annotations

import ctypes
import signal
import sys
from typing import Final

_PR_SET_PDEATHSIG: Final = 1


def wake_when_parent_ends() -> None:
    """Ask the kernel to continue this process when its parent ends, so that it can notice that and end too.

    A process that is stopped (SIGSTOP) would otherwise outlive its parent for good. It is not killed, since
    it has to say in Redis what it had in hand. Systems other than Linux have no such signal.
    """
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGCONT, 0, 0, 0)
