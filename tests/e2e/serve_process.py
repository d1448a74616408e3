"""A whole stack, started as a user starts it, on free ports; its log is read until the ready line."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import threading
from types import TracebackType

import psutil

from tests.ports import HOST, free_ports
from tests.service_process import ROOT
from tests.waiting import wait_until

READY_TIMEOUT_S = 240.0


def is_gone(process: psutil.Process) -> bool:
    """Whether a process has ended; a zombie, which nobody may reap in a container, has."""
    try:
        return bool(process.status() == psutil.STATUS_ZOMBIE)
    except psutil.NoSuchProcess:
        return True


class ServeProcess:
    """`parakeet-server serve` without a model, patient with a busy machine; further flags win over these."""

    def __init__(self, *flags: str, environment: dict[str, str] | None = None) -> None:
        self.tcp_port, self.ws_port, self.status_port = free_ports(3)
        self.lines: list[str] = []
        self._changed = threading.Condition()
        inherited = {name: value for name, value in os.environ.items() if not name.startswith("PARAKEET_")}
        self.process = subprocess.Popen(
            [
                # Ends with the test run, however that ends.
                *(
                    sys.executable,
                    "-I",
                    "-S",
                    str(ROOT / "parakeet" / "serve" / "tied_exec.py"),
                    str(os.getpid()),
                ),
                *(sys.executable, "-m", "parakeet.cli", "serve"),
                *("--port", str(self.tcp_port), "--ws-port", str(self.ws_port)),
                *("--status-port", str(self.status_port)),
                *("--device", "cpu", "--backend", "null", "--num-workers", "1"),
                *("--drain-timeout-s", "60"),
                *("--lease-ms", "30000", "--claim-timeout-ms", "60000"),
                *flags,
            ],
            cwd=ROOT,
            env=inherited | (environment or {}),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        self._reader = threading.Thread(target=self._read, name="serve log", daemon=True)
        self._reader.start()

    def _read(self) -> None:
        assert self.process.stdout is not None
        for line in self.process.stdout:
            with self._changed:
                self.lines.append(line.rstrip("\n"))
                self._changed.notify_all()
        with self._changed:
            self._changed.notify_all()

    @property
    def log(self) -> str:
        return "\n".join(self.lines)

    def wait_for_line(self, pattern: str, timeout_s: float = READY_TIMEOUT_S, *, count: int = 1) -> str:
        """Return the line that matches (the `count`th), once it has been printed."""

        def found() -> list[str]:
            return [line for line in self.lines if re.search(pattern, line)]

        with self._changed:
            arrived = self._changed.wait_for(
                lambda: len(found()) >= count or not self._reader.is_alive(), timeout_s
            )
            assert arrived, f"no line {pattern!r} within {timeout_s:g} s in:\n{self.log}"
            assert len(found()) >= count, f"serve ended without a line {pattern!r}:\n{self.log}"
            return found()[count - 1]

    def wait_until_ready(self, timeout_s: float = READY_TIMEOUT_S) -> str:
        """Return the ready line."""
        return self.wait_for_line(r" parakeet\.ready ready: ", timeout_s)

    @property
    def ws_url(self) -> str:
        return f"ws://{HOST}:{self.ws_port}"

    def children(self) -> list[psutil.Process]:
        """Return the processes that serve has started."""
        return psutil.Process(self.process.pid).children(recursive=True)

    def child(self, word: str) -> psutil.Process:
        """Return the one child whose command line has a word, once there is one alone.

        A moment after a fork a process still shows its parent's command line.
        """
        (found,) = wait_until(
            lambda: found if len(found := self.all_children(word)) == 1 else None,
            what=f"one child with {word}",
        )
        return found

    def all_children(self, word: str) -> list[psutil.Process]:
        """Return the children whose command line has a word."""
        found = []
        for process in self.children():
            try:
                if any(word in argument for argument in process.cmdline()):
                    found.append(process)
            except psutil.NoSuchProcess:
                continue
        return found

    @property
    def redis_url(self) -> str:
        """Address of the embedded server."""
        found = re.search(r"redis-cli -s (\S+)", self.wait_for_line(r"redis-cli -s "))
        assert found is not None
        return f"unix://{found[1]}"

    def wait(self, timeout_s: float = READY_TIMEOUT_S) -> int:
        """Wait until serve ends by itself, and for the end of its log; return the exit status."""
        status = self.process.wait(timeout_s)
        self._reader.join(timeout_s)
        return status

    def stop(self, number: int = signal.SIGTERM, timeout_s: float = 120.0) -> int:
        """Send a signal and return the exit status."""
        self.process.send_signal(number)
        return self.wait(timeout_s)

    def __enter__(self) -> ServeProcess:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        if self.process.poll() is None:
            self.process.kill()
            self.process.wait()
        self._reader.join(60)
        if self.process.stdout is not None:
            self.process.stdout.close()


def run_cli(
    *arguments: str,
    timeout_s: float = 240.0,
    stdin: bytes = b"",
    environment: dict[str, str] | None = None,
) -> subprocess.CompletedProcess[bytes]:
    """Run `parakeet-server` with these arguments to its end."""
    return subprocess.run(
        [sys.executable, "-m", "parakeet.cli", *arguments],
        cwd=ROOT,
        env={**os.environ, **(environment or {})},
        input=stdin,
        capture_output=True,
        timeout=timeout_s,
        check=False,
    )
