"""Ingress processes for tests."""

from __future__ import annotations

import json
import socket
from pathlib import Path
from typing import Any

from tests.ports import HOST, free_ports
from tests.service_process import ServiceProcess


class IngressProcess(ServiceProcess):
    """``python -m ingress`` on ports of its own, which waits patiently for its workers."""

    def __init__(
        self, url: str, ingress_id: str, log: Path, *, module: str = "ingress", **flags: object
    ) -> None:
        self.ingress_id = ingress_id
        self.port, self.ws_port, self.status_port = free_ports(3)
        options = {
            "port": self.port,
            "ws_port": self.ws_port,
            "status_port": self.status_port,
            "claim_timeout_ms": 60_000,
            **flags,
        }
        super().__init__(module, url, "--ingress-id", ingress_id, "px:{0}:ingresses", log, options)

    @property
    def tcp_url(self) -> str:
        return f"tcp://{HOST}:{self.port}"

    @property
    def ws_url(self) -> str:
        return f"ws://{HOST}:{self.ws_port}"

    def status(self) -> dict[str, Any]:
        """The line of the status port."""
        with socket.create_connection((HOST, self.status_port), timeout=60) as connection:
            data = b""
            while part := connection.recv(65536):
                data += part
        status: dict[str, Any] = json.loads(data)
        return status
