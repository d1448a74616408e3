"""The quarantined process, as a worker starts it."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from contextlib import suppress
from pathlib import Path

import pytest

from tests.waiting import wait_until

# It starts the quarantined process, says its pid, and lives until it is killed.
_WORKER = """
import subprocess, sys
command = [sys.executable, "-m", "gpu_worker.quarantined", *sys.argv[1:]]
child = subprocess.Popen(command, stdin=subprocess.PIPE)
print("started", child.pid, flush=True)
child.wait()
"""
_FLAGS = ("--backend=null", "--redis-url=redis://127.0.0.1:1", "--worker-max-streams=1")


@pytest.mark.skipif(sys.platform != "linux", reason="PR_SET_PDEATHSIG is Linux")
def test_one_that_is_stopped_ends_with_its_worker_all_the_same(tmp_path: Path) -> None:
    log = tmp_path / "log"
    with log.open("wb") as output:
        worker = subprocess.Popen([sys.executable, "-c", _WORKER, *_FLAGS], stdout=output, stderr=output)
    try:
        wait_until(lambda: "waiting for Redis" in log.read_text(), 100, "the start of the process")
        (child,) = [int(line.split()[1]) for line in log.read_text().splitlines() if line[:7] == "started"]
        os.kill(child, signal.SIGSTOP)
        worker.kill()
        worker.wait()
        try:
            wait_until(lambda: not _runs(child), what="the end of the process")
        finally:
            with suppress(ProcessLookupError):
                os.kill(child, signal.SIGKILL)
    finally:
        worker.kill()
        worker.wait()


def _runs(pid: int) -> bool:
    with suppress(FileNotFoundError, ProcessLookupError):
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    return False
