"""A server that is started for one trial and stopped after it."""

from __future__ import annotations

import contextlib
import shlex
import signal
import socket
import subprocess
import tempfile
import time
from collections.abc import Iterator
from typing import IO

from parakeet.bench.plan import STRANGER, Access, Target
from parakeet.bench.server.probe import probe

_STOP_TIMEOUT_S = 20.0


class ServerStartError(Exception):
    """The server's command ended, or the server completed no stream in time."""


@contextlib.contextmanager
def fresh_server(
    command: str | None, targets: tuple[Target, ...], timeout_s: float, access: Access = STRANGER
) -> Iterator[None]:
    """Run ``command``, if there is one, for the length of a ``with`` block.

    Raises:
        ServerStartError: an empty stream did not get its final in time; has the end of the command's output.
    """
    if command is None:
        yield
        return
    for target in targets:
        with contextlib.suppress(OSError):
            socket.create_connection((target.host, target.port), 1.0).close()
            raise ServerStartError(f"something answers at {target} before the server is started")
    with tempfile.TemporaryFile() as log:
        process = subprocess.Popen(
            shlex.split(command), stdout=log, stderr=subprocess.STDOUT, stdin=subprocess.DEVNULL
        )
        try:
            _await_ready(process, targets, timeout_s, access, log)
            yield
        finally:
            process.send_signal(signal.SIGTERM)
            try:
                process.wait(_STOP_TIMEOUT_S)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()


def _await_ready(
    process: subprocess.Popen[bytes],
    targets: tuple[Target, ...],
    timeout_s: float,
    access: Access,
    log: IO[bytes],
) -> None:
    deadline = time.monotonic() + timeout_s
    for target in targets:
        while True:
            hello, reason = probe(target, 5.0, access)
            if hello is not None:
                break
            if process.poll() is not None or time.monotonic() > deadline:
                log.seek(0)
                tail = log.read()[-2000:].decode(errors="replace")
                state = "ended" if process.poll() is not None else f"is not ready ({reason})"
                raise ServerStartError(f"the server {state}:\n{tail}")
            time.sleep(0.1)  # there is no event to wait for: the port is not open yet
