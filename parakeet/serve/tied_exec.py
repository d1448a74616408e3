"""Replace this process by a command that dies with the process that started it.

It runs as a file of its own, ``python -I -S tied_exec.py PARENT_PID COMMAND [ARGUMENT...]``. It imports no
module of this project, so it takes some 20 ms, and after the exec `ps` shows COMMAND alone.

PR_SET_PDEATHSIG (prctl(2)) survives the exec. It is sent when the *thread* that started this process ends,
so start children from a thread that lives as long as they should, such as the main thread. The signal is set
here and not in a preexec_fn, so that the parent may have threads. Systems other than Linux have no such
signal; there a child outlives a parent that was killed with SIGKILL.
"""

import ctypes
import os
import signal
import sys

PR_SET_PDEATHSIG = 1


def main(argv: list[str]) -> None:
    """Tie this process to its parent, then become the command."""
    parent_pid, command = int(argv[1]), argv[2:]
    if sys.platform == "linux":
        libc = ctypes.CDLL(None, use_errno=True)
        if libc.prctl(PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0) != 0:
            raise OSError(ctypes.get_errno(), "prctl(PR_SET_PDEATHSIG)")
    # The parent may have died before the call above took effect.
    if os.getppid() != parent_pid:
        sys.exit(1)
    os.execvp(command[0], command)  # noqa: S606 - becoming the command is the purpose


if __name__ == "__main__":
    main(sys.argv)
