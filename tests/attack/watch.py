"""What is watched of the service meanwhile: its processes, their memory and files, and the keys of Redis."""

from __future__ import annotations

import asyncio
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any

import psutil

_EVERY_S = 1.0
# What `serve` starts; decoders come and go.
_ROLES = {"ingress": "-m ingress", "worker": "-m gpu_worker"}


@dataclass(slots=True)
class Watch:
    """Looks at the processes of one `serve`.

    pids: of each role, ever seen.   memory_bytes, files: resident memory and open descriptors, at each look.
    """

    serve_pid: int
    pids: dict[str, set[int]] = field(default_factory=dict)
    memory_bytes: dict[str, list[int]] = field(default_factory=dict)
    files: dict[str, list[int]] = field(default_factory=dict)

    async def run(self) -> None:
        """Look every second, until cancelled."""
        while True:
            self.look()
            await asyncio.sleep(_EVERY_S)

    def look(self) -> dict[str, int]:
        """Look now; returns the open descriptors of each role."""
        files: dict[str, int] = {}
        for child in psutil.Process(self.serve_pid).children():
            with suppress(psutil.Error):
                command = " ".join(child.cmdline())
                for role, mark in _ROLES.items():
                    if mark in command:
                        files[role] = child.num_fds()
                        self.pids.setdefault(role, set()).add(child.pid)
                        self.memory_bytes.setdefault(role, []).append(child.memory_info().rss)
                        self.files.setdefault(role, []).append(files[role])
        return files


def keys_left(client: Any) -> list[str]:
    """What streams have in Redis, admissions and assignments included."""
    left = [name.decode() for name in client.scan_iter(match="px:{*}:*:[marst]", count=1000)]
    left += ["admissions"] * client.zcard("px:{0}:adm") + ["assignments"] * client.xlen("px:{0}:new")
    return sorted(left)
