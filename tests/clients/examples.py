"""The examples of docs/clients.md, as they stand there but for address and key."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Final

from tests.service_process import ROOT

PAGE: Final = ROOT / "docs" / "clients.md"
_BLOCK: Final = re.compile(r"(?:<!-- example: (\S+) (\S+) -->\n)?```(\w*)\n(.*?)```", re.DOTALL)


@dataclass(frozen=True, slots=True)
class Example:
    """A program of the page. environment: in which it runs."""

    environment: str
    name: str
    program: str

    def aimed_at(self, *, key: str, ws_port: int, tcp_port: int = 0, tls_port: int = 0) -> str:
        """Return the program with another address and key, nothing else."""
        ports = {"127.0.0.1:8000": ws_port, "speech.example": tls_port}
        program = self.program.replace('"127.0.0.1", 8765', f'"127.0.0.1", {tcp_port}').replace("pk_…", key)
        for address, port in ports.items():
            program = program.replace(address, f"127.0.0.1:{port}")
        return program


def blocks() -> list[tuple[str, Example]]:
    """Return all blocks of code of the page with their languages; those without a mark have no name."""
    found = _BLOCK.findall(PAGE.read_text(encoding="utf-8"))
    return [(language, Example(where, name, text)) for where, name, language, text in found]


def example(environment: str, name: str) -> Example:
    """Return one example."""
    (found,) = [one for _, one in blocks() if (one.environment, one.name) == (environment, name)]
    return found
