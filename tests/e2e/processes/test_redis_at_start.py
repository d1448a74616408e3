"""How processes start on a Redis that is not what is needed, and how they wait for one that is away."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

import pytest

from parakeet.serve.embedded_redis import EmbeddedRedis
from tests.ports import free_ports
from tests.servers import make_server
from tests.service_process import ROOT
from tests.waiting import wait_until

COMMANDS = {
    "serve": ("parakeet.cli", "serve", "--backend", "null"),
    "ingress": ("ingress",),
    "worker": ("gpu_worker", "--backend", "null"),
    "health": ("parakeet.cli", "health"),
}
PORTS = ("--port", "--ws-port", "--status-port")


@contextmanager
def started(command: str, url: str, *more: str) -> Iterator[subprocess.Popen[str]]:
    """A process that is told to use this Redis; killed at the end where it still runs."""
    module, *flags = COMMANDS[command]
    if command in ("serve", "ingress"):
        flags += [f"{flag}={port}" for flag, port in zip(PORTS, free_ports(3), strict=True)]
    process = subprocess.Popen(
        [sys.executable, "-m", module, *flags, *more, "--redis-url", url],
        cwd=ROOT,
        env={name: value for name, value in os.environ.items() if not name.startswith("PARAKEET_")},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    try:
        yield process
    finally:
        process.kill()
        process.communicate()


@pytest.fixture(scope="module")
def evicting() -> Iterator[EmbeddedRedis]:
    with make_server("embedded", "--maxmemory-policy", "allkeys-lru") as server:
        yield server


@pytest.mark.parametrize("command", COMMANDS)
def test_a_redis_that_is_not_what_is_needed_is_one_sentence_and_an_exit_status(
    command: str, evicting: EmbeddedRedis
) -> None:
    with started(command, evicting.url) as process:
        said, _ = process.communicate(timeout=120)
    assert process.returncode == 2
    assert "Traceback" not in said
    (line,) = (line for line in said.splitlines() if "Redis at" in line)
    assert f"Redis at {evicting.url} has maxmemory-policy allkeys-lru" in line
    assert "noeviction is needed" in line


@pytest.mark.parametrize("command", ["serve", "ingress", "health"])
def test_a_redis_that_is_away_is_told_with_address_and_cause(command: str) -> None:
    (port,) = free_ports(1)
    with started(command, f"redis://:secret@127.0.0.1:{port}/2") as process:
        said, _ = process.communicate(timeout=120)
    assert process.returncode == 1
    assert "Traceback" not in said
    # What is asked again and again says so meanwhile; the last line says why the process ends.
    lines = [line for line in said.splitlines() if "Redis at" in line]
    assert all(f"Redis at 127.0.0.1:{port}/2 does not answer: Connection refused." in line for line in lines)
    assert lines[-1].endswith("refused.")
    assert len(lines) <= (1 if command == "health" else 3)
    assert "secret" not in said


@pytest.mark.parametrize("command", ["ingress", "worker"])
@pytest.mark.parametrize("host", ["silent", "no-such-host.invalid"])
def test_a_process_that_waits_for_redis_ends_at_sigterm(command: str, host: str) -> None:
    with ExitStack() as stack:
        listener = stack.enter_context(socket.create_server(("127.0.0.1", 0)))
        listener.settimeout(90)
        url = f"redis://127.0.0.1:{listener.getsockname()[1]}" if host == "silent" else f"redis://{host}"
        with started(command, url, "--redis-timeout-ms", "600000") as process:
            wait_until(lambda: handles_sigterm(process.pid))
            if host == "silent":
                stack.enter_context(listener.accept()[0])
            process.send_signal(signal.SIGTERM)
            process.communicate(timeout=120)  # well below the time-out of Redis
            assert process.returncode == 0


def handles_sigterm(pid: int) -> bool:
    """Whether a process has taken SIGTERM upon itself."""
    lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    caught = next(line.split()[1] for line in lines if line.startswith("SigCgt:"))
    return bool(int(caught, 16) >> (signal.SIGTERM - 1) & 1)
