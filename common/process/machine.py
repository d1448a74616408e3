"""The cores and the memory that this process may use, and the threads of a worker on them."""

from __future__ import annotations

import contextlib
import math
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Final

_CGROUP: Final = Path("/sys/fs/cgroup")


@dataclass(frozen=True, slots=True)
class Machine:
    """The resources that this process may use: cores, and bytes of free memory."""

    num_cores: int
    free_bytes: int

    @classmethod
    def here(cls) -> Machine:
        """Return the resources of this machine, within the limits of its container."""
        cores: float = (
            len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
        )
        with contextlib.suppress(OSError, ValueError):
            quota, period = (_CGROUP / "cpu.max").read_text().split()
            if quota != "max":
                cores = min(cores, int(quota) / int(period))
        return cls(max(1, math.floor(cores)), _free_bytes())

    def threads_of(self, num_workers: int) -> int:
        """Return the PyTorch threads of each worker on CPU: its share of the cores less one, at least one.

        The one core is for the worker's other threads, and for its part of ingress and Redis. PyTorch's
        threads wait for each other at every operator: one thread that has to share its core delays all.
        """
        return max(1, self.num_cores // num_workers - 1)


def _free_bytes() -> int:
    free = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    with contextlib.suppress(OSError, ValueError, StopIteration):
        lines = Path("/proc/meminfo").read_text().splitlines()
        free = 1024 * next(int(line.split()[1]) for line in lines if line.startswith("MemAvailable:"))
    with contextlib.suppress(OSError, ValueError):
        limit = (_CGROUP / "memory.max").read_text().strip()
        if limit != "max":
            free = min(free, int(limit) - int((_CGROUP / "memory.current").read_text()))
    return max(0, free)
