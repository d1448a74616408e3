"""The examples of docs/clients.md, as they stand there but for address and key."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

from tests.documents import ROOT, blocks

PAGE: Final = ROOT / "docs" / "clients.md"


@dataclass(frozen=True, slots=True)
class Example:
    """A program of the page. environment: in which it runs."""

    environment: str
    name: str
    program: str

    def aimed_at(self, *, key: str, ws_port: int, tcp_port: int = 0, tls_port: int = 0) -> str:
        """Return the program with another address and key, nothing else."""
        ports = {"127.0.0.1:8000": ws_port, "speech.example": tls_port}
        program = self.program.replace('"127.0.0.1", 8765', f'"127.0.0.1", {tcp_port}').replace(
            "pk_YOUR_KEY", key
        )
        for address, port in ports.items():
            program = program.replace(address, f"127.0.0.1:{port}")
        return program


def example(environment: str, name: str) -> Example:
    """Return the program of the page that carries the mark ``<!-- example: ENVIRONMENT NAME -->``."""
    (block,) = [one for one in blocks(PAGE) if one.mark == f"example: {environment} {name}"]
    return Example(environment, name, block.text)
