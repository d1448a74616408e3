"""A child process that is restarted with bounded back-off when it dies, and ends with its parent."""

from __future__ import annotations

import contextlib
import logging
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from common.process.backoff import Backoff
from common.process.last_words import LastWords

logger = logging.getLogger(__name__)

_TIED_EXEC = str(Path(__file__).with_name("tied_exec.py"))


def start_tied(
    command: Sequence[str],
    environment: Mapping[str, str] | None = None,
    *,
    output: int | None = None,
    inherited: Sequence[int] = (),
) -> subprocess.Popen[bytes]:
    """Start a command that the kernel kills when the calling thread ends, for any reason.

    The child stays in this session but leads a process group of its own, so that Ctrl-C reaches the
    supervisor alone and children stop in its order. `output` is a file descriptor for stdout and stderr;
    the descriptors in `inherited` stay open in the child under the same numbers.
    """
    return subprocess.Popen(
        [sys.executable, "-I", "-S", _TIED_EXEC, str(os.getpid()), *command],
        stdin=subprocess.DEVNULL,
        stdout=output,
        stderr=output,
        env=None if environment is None else dict(environment),
        process_group=0,
        pass_fds=inherited,
    )


def describe_exit(returncode: int) -> str:
    """Return a phrase on how a process ended."""
    if returncode >= 0:
        return f"exit status {returncode}"
    with contextlib.suppress(ValueError):
        return signal.Signals(-returncode).name
    return f"signal {-returncode}"


@dataclass(frozen=True, slots=True)
class Launch:
    """One start of a child: its name in Redis, its command line and environment."""

    process_id: str
    command: tuple[str, ...]
    environment: Mapping[str, str]


class Child:
    """A supervised process. `make_launch` is called at every start, since each start has its own name."""

    def __init__(self, name: str, make_launch: Callable[[], Launch]) -> None:
        self.name = name
        self.num_restarts = 0
        self.restart_at: float | None = None
        """Monotonic time of the next start; None while the child runs."""
        self._make_launch = make_launch
        self._process: subprocess.Popen[bytes] | None = None
        self._launch: Launch | None = None
        self._backoff = Backoff()
        self._last_words = LastWords()

    @property
    def process_id(self) -> str:
        """The name in Redis of the running (or last) start."""
        return self._launch.process_id if self._launch else ""

    @property
    def pid(self) -> int | None:
        return self._process.pid if self._process else None

    @property
    def running(self) -> bool:
        return self._process is not None and self._process.poll() is None

    def start(self) -> None:
        """Start the process, under a new name. Raises OSError where the system has no room for it."""
        self._backoff.started(time.monotonic())
        self._launch = self._make_launch()
        self._last_words = LastWords()
        self._process = start_tied(
            self._launch.command,
            {**self._launch.environment, **self._last_words.environment},
            inherited=(self._last_words.descriptor,),
        )
        self.restart_at = None
        logger.info("started %s as %s, pid %d", self.name, self.process_id, self._process.pid)

    def start_again(self) -> None:
        """Start the process; where the system has no room for it, set `restart_at` to a later time."""
        try:
            self.start()
        except OSError as error:
            now = time.monotonic()
            wait_s = self._backoff.ended(now)
            self.restart_at = now + wait_s
            logger.error("%s could not be started, trying again in %.1f s: %s", self.name, wait_s, error)

    def exited(self) -> int | None:
        """Return the exit status of a child that died since the last call, None for one that lives."""
        if self._process is None:
            return None
        returncode = self._process.poll()
        if returncode is not None:
            self._process = None
        return returncode

    @property
    def last_words(self) -> str:
        """Return the last log record from ERROR on as the end of a sentence, after a colon, or ""."""
        said = self._last_words.read()
        return f": {said}" if said else "."

    def schedule_restart(self, returncode: int) -> None:
        """Set `restart_at`; the wait doubles at each death in quick succession."""
        now = time.monotonic()
        wait_s = self._backoff.ended(now)
        self.restart_at = now + wait_s
        logger.warning(
            "%s (%s) ended with %s, restarting in %.1f s%s",
            self.name,
            self.process_id,
            describe_exit(returncode),
            wait_s,
            self.last_words,
        )
        self.num_restarts += 1

    def send_signal(self, number: int) -> None:
        if self._process is not None:
            with contextlib.suppress(ProcessLookupError):
                self._process.send_signal(number)

    def wait(self, timeout_s: float) -> bool:
        """Return whether the child ended within the time."""
        if self._process is None:
            return True
        try:
            self._process.wait(max(timeout_s, 0.0))
        except subprocess.TimeoutExpired:
            return False
        return True

    def kill(self) -> None:
        """Kill the child and reap it."""
        self.send_signal(signal.SIGKILL)
        if self._process is not None:
            self._process.wait()
