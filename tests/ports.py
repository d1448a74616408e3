"""Ports for the servers that tests start."""

from __future__ import annotations

import os
import random
import socket
import time
from collections.abc import Iterator
from itertools import cycle, islice
from pathlib import Path
from typing import Final

HOST: Final = "127.0.0.1"
_FIRST_PORT: Final = 20_000
_END_PORT: Final = 60_000
_EPHEMERAL: Final = Path("/proc/sys/net/ipv4/ip_local_port_range")


def _own_ports() -> Iterator[int]:
    """Ports that only this process of a parallel run hands out, each again only after all of the others.

    The system chooses none of them for an outgoing connection, which might have it by the time that the
    server binds it: unless it is set to choose from nearly all ports.
    """
    end = int(_EPHEMERAL.read_text().split()[0])
    if end <= _FIRST_PORT + 2_000:
        end = _END_PORT
    number = int(os.environ.get("PYTEST_XDIST_WORKER", "gw0").removeprefix("gw"))
    size = (end - _FIRST_PORT) // max(number + 1, int(os.environ.get("PYTEST_XDIST_WORKER_COUNT", "1")))
    first = _FIRST_PORT + number * size
    start = random.SystemRandom().randrange(size)  # other runs on this machine begin elsewhere
    return (first + (start + at) % size for at in cycle(range(size)))


_PORTS: Final = _own_ports()


def _is_free(port: int) -> bool:
    with socket.socket() as probe:
        try:
            probe.bind((HOST, port))
        except OSError:
            return False
    return True


def free_ports(count: int) -> list[int]:
    """Ports that nobody listens on, all different; nobody else in this test run gets them."""
    return list(islice((port for port in _PORTS if _is_free(port)), count))


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
        ports = free_ports(count)
        if ports == list(range(ports[0], ports[0] + count)):
            return ports[0]
