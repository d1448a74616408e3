"""Children: tied to the life of their parent, restarted with bounded back-off."""

from __future__ import annotations

import errno
import os
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import psutil
import pytest

from common.process.backoff import FIRST_BACKOFF_S, STEADY_AFTER_S
from parakeet.serve import child as child_module
from parakeet.serve.child import Child, Launch, describe_exit, start_tied
from tests.waiting import wait_until

linux_only = pytest.mark.skipif(sys.platform != "linux", reason="PR_SET_PDEATHSIG is Linux")

SLEEP = (sys.executable, "-c", "import time; time.sleep(600)")

PARENT = """
import sys, time
from parakeet.serve.child import start_tied
print(start_tied([sys.executable, "-c", "import time; time.sleep(600)"]).pid, flush=True)
time.sleep(600)
"""


def is_gone(pid: int) -> bool:
    """Whether a process has ended; a zombie, which nobody may reap in a container, has."""
    try:
        return psutil.Process(pid).status() == psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return True


@linux_only
@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM])
def test_a_child_ends_with_its_parent(number: signal.Signals) -> None:
    with subprocess.Popen([sys.executable, "-c", PARENT], stdout=subprocess.PIPE, text=True) as parent:
        assert parent.stdout is not None
        pid = int(parent.stdout.readline())
        wait_until(lambda: "sleep" in " ".join(psutil.Process(pid).cmdline()))
        assert not is_gone(pid)
        parent.send_signal(number)
        wait_until(lambda: is_gone(pid))


@linux_only
def test_a_command_whose_parent_has_died_already_is_not_run(tmp_path: Path) -> None:
    mark = tmp_path / "ran"
    launcher = Path(child_module.__file__).with_name("tied_exec.py")
    nobody = 2**22 + 1
    ended = subprocess.run(
        [sys.executable, "-I", "-S", str(launcher), str(nobody), "touch", str(mark)], timeout=30, check=False
    )
    assert ended.returncode == 1
    assert not mark.exists()


def test_a_child_shows_its_own_command_in_this_session_and_a_group_of_its_own() -> None:
    process = start_tied(SLEEP)
    try:
        wait_until(lambda: psutil.Process(process.pid).cmdline() == list(SLEEP))
        assert os.getsid(process.pid) == os.getsid(0)
        assert os.getpgid(process.pid) == process.pid
    finally:
        process.kill()
        process.wait()


def launches(*commands: tuple[str, ...]) -> Callable[[], Launch]:
    left = list(commands)
    return lambda: Launch(f"id-{len(commands) - len(left)}", left.pop(0), dict(os.environ))


def test_the_exit_status_of_a_child_is_told_once() -> None:
    child = Child("worker 0", launches((sys.executable, "-c", "raise SystemExit(3)")))
    child.start()
    assert child.wait(30.0)
    assert (child.exited(), child.exited(), child.running) == (3, None, False)


def test_a_child_is_waited_for_twice_as_long_each_time_until_it_ran_steadily(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    clock = [1000.0]
    monkeypatch.setattr("parakeet.serve.child.time.monotonic", lambda: clock[0])
    monkeypatch.setattr("parakeet.serve.child.start_tied", lambda *_, **__: subprocess.Popen(["true"]))
    child = Child("worker 0", lambda: Launch("w", ("true",), {}))
    waits = []
    for _ in range(3):
        child.start()
        child.wait(60)
        child.schedule_restart(1)
        assert child.restart_at is not None
        waits.append(child.restart_at - clock[0])
    assert waits == [FIRST_BACKOFF_S * factor for factor in (1, 2, 4)]
    child.start()
    assert (child.restart_at, child.num_restarts) == (None, 3)
    clock[0] += STEADY_AFTER_S
    child.wait(60)
    child.schedule_restart(1)
    assert child.restart_at == clock[0] + FIRST_BACKOFF_S
    assert child.num_restarts == 4


def test_a_start_that_the_system_has_no_room_for_is_tried_again_later(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    clock, num_failures = [1000.0], [2]
    monkeypatch.setattr("parakeet.serve.child.time.monotonic", lambda: clock[0])

    def start(*_: object, **__: object) -> subprocess.Popen[bytes]:
        if num_failures[0]:
            num_failures[0] -= 1
            raise BlockingIOError(errno.EAGAIN, "Resource temporarily unavailable")
        return subprocess.Popen(["true"])

    monkeypatch.setattr("parakeet.serve.child.start_tied", start)
    child = Child("worker 0", lambda: Launch("w", ("true",), {}))
    waits = []
    for _ in range(2):
        child.start_again()
        assert child.restart_at is not None
        assert (child.exited(), child.running) == (None, False)
        waits.append(child.restart_at - clock[0])
    assert waits == [FIRST_BACKOFF_S, 2 * FIRST_BACKOFF_S]
    child.start_again()
    assert child.restart_at is None
    assert child.wait(10.0)


def test_each_start_has_a_name_of_its_own() -> None:
    child = Child("worker 0", launches(("true",), ("true",)))
    child.start()
    first = child.process_id
    child.wait(30.0)
    child.exited()
    child.start()
    assert child.process_id != first
    child.kill()
    assert not child.running


@pytest.mark.parametrize(
    ("returncode", "words"),
    [(0, "exit status 0"), (2, "exit status 2"), (-9, "SIGKILL"), (-250, "signal 250")],
)
def test_exits_in_words(returncode: int, words: str) -> None:
    assert describe_exit(returncode) == words
