"""Workers by fork: ``python -m tests.chaos.fleets.nursery`` has imported torch and makes one in milliseconds.

One JSON object a line on stdin starts a worker: `argv` of `python -m gpu_worker`, `environment`, `log`.
On stdout: {"pid": n} for each start, {"pid": n, "status": s} for each end. Everything dies with stdin.

Each worker is a process of its own that runs what `python -m gpu_worker` runs; only its imports are shared.
"""

from __future__ import annotations

import ctypes
import json
import os
import select
import signal
import sys
from types import FrameType
from typing import Any, NoReturn

_PR_SET_PDEATHSIG = 1


def _become_worker(order: dict[str, Any]) -> NoReturn:
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)
    signal.set_wakeup_fd(-1)
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    os.setpgid(0, 0)
    log = os.open(order["log"], os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
    null = os.open(os.devnull, os.O_RDONLY)
    for source, target in ((null, 0), (log, 1), (log, 2)):
        os.dup2(source, target)
    os.environ.update(order["environment"])
    sys.argv = ["gpu_worker", *order["argv"]]
    status = 1
    try:
        from gpu_worker.__main__ import main

        status = main()
    except SystemExit as end:
        status = end.code if isinstance(end.code, int) else 1
    finally:
        sys.stdout.flush()
        os._exit(status)


def _say(**fields: int) -> None:
    sys.stdout.write(json.dumps(fields) + "\n")
    sys.stdout.flush()


def _reap() -> None:
    while True:
        try:
            pid, status = os.waitpid(-1, os.WNOHANG)
        except ChildProcessError:
            return
        if pid == 0:
            return
        _say(pid=pid, status=os.waitstatus_to_exitcode(status))


def main() -> None:
    import torch

    import gpu_worker.__main__
    import gpu_worker.steps.factory
    import gpu_worker.turn.configuration  # noqa: F401 - what a worker imports

    torch.set_num_threads(1)
    reader, writer = os.pipe()
    for end in (reader, writer):
        os.set_blocking(end, False)

    def on_child(_number: int, _frame: FrameType | None) -> None:
        """Only wakes the loop."""

    signal.signal(signal.SIGCHLD, on_child)
    signal.set_wakeup_fd(writer, warn_on_full_buffer=False)
    _say(pid=os.getpid())
    buffered = b""
    while True:
        ready, _, _ = select.select([0, reader], [], [])
        if reader in ready:
            os.read(reader, 512)
            _reap()
        if 0 not in ready:
            continue
        data = os.read(0, 65536)
        if not data:
            return
        *lines, buffered = (buffered + data).split(b"\n")
        for line in lines:
            pid = os.fork()
            if pid == 0:
                _become_worker(json.loads(line))
            _say(pid=pid)


if __name__ == "__main__":
    main()
