"""The whole stack on this machine, started by `parakeet-server serve`, for commands that test it."""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import subprocess
import sys
import threading
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Final

from common.errors import ServiceError
from common.settings import plain_environment
from parakeet.client import ClientError
from parakeet.serve.child import describe_exit, start_tied

START_TIMEOUT_S: Final = 180.0
STOP_TIMEOUT_S: Final = 60.0
_LOG_LINES: Final = 40


class StackFailed(ServiceError):  # noqa: N818 - the name says it
    """The stack did not start or did not stop as it should. `log`: its last lines."""

    def __init__(self, message: str, log: str) -> None:
        reason = log.rpartition("\n")[2]
        super().__init__(f"{message}{f': {reason}' if reason else '.'}")
        self.log = log


def free_ports(count: int) -> list[int]:
    """Return free ports."""
    with contextlib.ExitStack() as stack:
        probes = [stack.enter_context(socket.socket()) for _ in range(count)]
        for probe in probes:
            probe.bind(("127.0.0.1", 0))
        return [probe.getsockname()[1] for probe in probes]


class LocalStack:
    """`serve` as a child of this process, on ports that were free.

    flags: flags of `serve`, beside its ports.   start_timeout_s: longest time until it is ready.
    on_line: called with each line of the log, in a thread.
    worker_line: the ready line of a worker.
    """

    def __init__(
        self,
        flags: Sequence[str],
        start_timeout_s: float = START_TIMEOUT_S,
        on_line: Callable[[str], None] = lambda _: None,
    ) -> None:
        self._start_timeout_s = start_timeout_s
        self._on_line = on_line
        self.tcp_port, self.ws_port, self.status_port = free_ports(3)
        reader, writer = os.pipe()
        self._log: deque[str] = deque(maxlen=_LOG_LINES)
        self._ready = threading.Event()
        self._ready_line = ""
        self.worker_line = ""
        ports = {"port": self.tcp_port, "ws-port": self.ws_port, "status-port": self.status_port}
        self.command = ["serve", *flags]
        for name, port in ports.items():
            self.command += [f"--{name}", str(port)]
        try:
            self.process = start_tied(
                [sys.executable, "-m", "parakeet.cli", *self.command], plain_environment(), output=writer
            )
        finally:
            os.close(writer)
        self._reader = threading.Thread(target=self._read, args=(reader,), name="serve log", daemon=True)
        self._reader.start()

    def _read(self, descriptor: int) -> None:
        with os.fdopen(descriptor, encoding="utf-8", errors="replace") as lines:
            for line in lines:
                self._log.append(line.rstrip("\n"))
                self._on_line(line.rstrip("\n"))
                if " worker ready with " in line:
                    self.worker_line = line.strip()
                if " parakeet.ready ready: " in line:
                    self._ready_line = line[line.index("ready: ") :].strip()
                    self._ready.set()
        # The end of the log: no caller shall wait any longer.
        self._ready.set()

    @property
    def log(self) -> str:
        return "\n".join(self._log)

    def wait_until_ready(self) -> str:
        """Return the ready line; raise StackFailed where it does not come."""
        if not self._ready.wait(self._start_timeout_s) or not self._ready_line:
            raise StackFailed("The stack did not start", self.log)
        return self._ready_line

    def stop(self) -> None:
        """Stop the stack; raise StackFailed where it does not stop cleanly."""
        self.process.send_signal(signal.SIGTERM)
        try:
            status = self.process.wait(STOP_TIMEOUT_S)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()
            raise StackFailed("The stack did not stop", self.log) from None
        self._reader.join(STOP_TIMEOUT_S)
        if status != 0:
            raise StackFailed(f"The stack ended with {describe_exit(status)}", self.log)


@contextmanager
def running(stack: LocalStack) -> Iterator[LocalStack]:
    """Run a stack, and stop it in the end. Raises StackFailed, with its log if a client of it failed, too."""
    try:
        try:
            yield stack
        except ClientError as error:
            raise StackFailed(f"The stream failed ({error})", stack.log) from error
        stack.stop()
    finally:
        if stack.process.poll() is None:
            stack.process.terminate()
            with contextlib.suppress(subprocess.TimeoutExpired):
                stack.process.wait(STOP_TIMEOUT_S)
            stack.process.kill()
