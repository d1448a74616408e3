"""Ingress processes for tests, started by the command line that `serve` uses."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
from pathlib import Path
from types import TracebackType
from typing import Any

from parakeet.child import start_tied
from tests.waiting import wait_until

ROOT = Path(__file__).parents[1]
HOST = "127.0.0.1"


def free_ports(count: int) -> list[int]:
    """Ports that nothing listens on."""
    sockets = [socket.socket() for _ in range(count)]
    for one in sockets:
        one.bind((HOST, 0))
    ports = [one.getsockname()[1] for one in sockets]
    for one in sockets:
        one.close()
    return ports


class IngressProcess:
    """``python -m ingress`` on ports of its own. Killed when the test ends."""

    def __init__(self, url: str, ingress_id: str, log: Path, **flags: object) -> None:
        self.ingress_id = ingress_id
        self.port, self.ws_port, self.status_port = free_ports(3)
        options = {
            "port": self.port,
            "ws_port": self.ws_port,
            "status_port": self.status_port,
            "heartbeat_ms": 200,
            **flags,
        }
        self._log = log.open("ab")
        self.log_path = log
        command = [
            *(sys.executable, "-m", "ingress", f"--ingress-id={ingress_id}", "--log-level=debug"),
            *(f"--{name.replace('_', '-')}={value}" for name, value in options.items()),
        ]
        environment = {**os.environ, "PARAKEET_REDIS_URL": url, "PYTHONPATH": str(ROOT)}
        self._process = start_tied(command, environment, output=self._log.fileno())

    def __enter__(self) -> IngressProcess:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._process.poll() is None:
            self._process.kill()
            self._process.wait()
        self._log.close()

    def ready(self, client: Any, timeout_s: float = 30.0) -> IngressProcess:
        """Wait until the ingress has signed on, which it does once its ports are open."""
        wait_until(
            lambda: client.zscore("px:{0}:ingresses", self.ingress_id) or self._process.poll() is not None,
            timeout_s,
            f"the heartbeat of {self.ingress_id}",
        )
        assert self._process.poll() is None, self.log_text()
        return self

    @property
    def pid(self) -> int:
        return self._process.pid

    @property
    def tcp_url(self) -> str:
        return f"tcp://{HOST}:{self.port}"

    @property
    def ws_url(self) -> str:
        return f"ws://{HOST}:{self.ws_port}"

    @property
    def running(self) -> bool:
        return self._process.poll() is None

    def send(self, number: signal.Signals) -> None:
        """Send a signal."""
        self._process.send_signal(number)

    def wait(self, timeout_s: float = 20.0) -> int:
        """Wait for the end; gives the exit status."""
        try:
            return self._process.wait(timeout_s)
        except subprocess.TimeoutExpired:
            raise AssertionError(f"{self.ingress_id} still runs:\n{self.log_text()}") from None

    def log_text(self) -> str:
        """What the ingress logged."""
        return self.log_path.read_text()

    def status(self) -> dict[str, Any]:
        """The line of the status port."""
        with socket.create_connection((HOST, self.status_port), timeout=5) as connection:
            data = b""
            while part := connection.recv(65536):
                data += part
        status: dict[str, Any] = json.loads(data)
        return status
