"""A process of the service in a test, started by the command line that `serve` uses."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from types import TracebackType
from typing import Any, ClassVar, Final, Self

from parakeet.serve.child import start_tied
from tests.waiting import WAIT_S, wait_until

ROOT: Final = Path(__file__).parents[1]


def wait_until_stopped(pid: int) -> None:
    """Wait until no thread of a process runs: on a busy machine some go on for a while after SIGSTOP."""

    def is_stopped() -> bool:
        try:
            stats = [path.read_text() for path in Path(f"/proc/{pid}/task").glob("*/stat")]
        except (FileNotFoundError, ProcessLookupError):
            return False  # a thread has just ended
        return bool(stats) and all(stat.rpartition(") ")[2][0] in "Tt" for stat in stats)

    wait_until(is_stopped, what=f"the stop of process {pid}")


class ServiceProcess:
    """``python -m MODULE``, which writes to a log. Killed when the test ends.

    name: as Redis knows it, given by the flag `name_flag`.   register: the key where it signs on.
    flags: further ones, named as the settings are.
    """

    python: ClassVar[str] = sys.executable
    """The interpreter."""

    def __init__(
        self,
        module: str,
        url: str,
        name_flag: str,
        name: str,
        register: str,
        log: Path,
        flags: Mapping[str, object],
    ) -> None:
        self._name = name
        self._register = register
        self.log_path = log
        command = [
            *(self.python, "-m", module, f"{name_flag}={name}", "--log-level=debug"),
            *(f"--{flag.replace('_', '-')}={value}" for flag, value in flags.items()),
        ]
        environment = {**os.environ, "PARAKEET_REDIS_URL": url, "PYTHONPATH": str(ROOT)}
        with log.open("ab") as output:
            self._process = start_tied(command, environment, output=output.fileno())

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self.running:
            self._process.kill()
            self._process.wait()

    def ready(self, client: Any, timeout_s: float = 400.0) -> Self:
        """Wait until the process has signed on, which it does once it serves."""
        wait_until(
            lambda: client.zscore(self._register, self._name) or not self.running,
            timeout_s,
            f"{self._name} in {self._register}",
        )
        assert self.running, self.log_text()
        return self

    @property
    def pid(self) -> int:
        return self._process.pid

    @property
    def num_open_files(self) -> int:
        return len(list(Path(f"/proc/{self.pid}/fd").iterdir()))

    @property
    def running(self) -> bool:
        return self._process.poll() is None

    def send(self, number: signal.Signals) -> None:
        """Send a signal; SIGSTOP has stopped every thread when this returns."""
        self._process.send_signal(number)
        if number == signal.SIGSTOP:
            wait_until_stopped(self.pid)

    def wait(self, timeout_s: float = WAIT_S) -> int:
        """Wait for the end; return the exit status."""
        try:
            return self._process.wait(timeout_s)
        except subprocess.TimeoutExpired:
            raise AssertionError(f"{self._name} still runs:\n{self.log_text()}") from None

    def log_text(self) -> str:
        """What the process logged."""
        return self.log_path.read_text()
