"""Ports for the servers that tests start."""

from __future__ import annotations

import socket
import time
from contextlib import ExitStack
from typing import Final

HOST: Final = "127.0.0.1"
_LAST_PORT: Final = 65_535


def free_ports(count: int) -> list[int]:
    """Ports that nobody listens on just now, all different."""
    with ExitStack() as held:
        probes = [held.enter_context(socket.socket()) for _ in range(count)]
        for probe in probes:
            probe.bind((HOST, 0))
        return [probe.getsockname()[1] for probe in probes]


def wait_until_listening(host: str, port: int, timeout_s: float) -> bool:
    """Return whether something accepts connections there within the time."""
    deadline = time.monotonic() + timeout_s
    while time.monotonic() < deadline:
        try:
            socket.create_connection((host, port), timeout=1.0).close()
        except OSError:
            time.sleep(0.02)
        else:
            return True
    return False


def ports_in_a_row(count: int) -> int:
    """The first of so many neighbours that nobody has now."""
    while True:
        (first,) = free_ports(1)
        if first + count - 1 > _LAST_PORT:
            continue
        with ExitStack() as held:
            try:
                for port in range(first, first + count):
                    held.enter_context(socket.socket()).bind((HOST, port))
            except OSError:
                continue
            return first
