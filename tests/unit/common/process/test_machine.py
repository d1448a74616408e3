"""The cores and the memory that a process may use."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from common.process import machine
from common.process.machine import Machine


def test_a_containers_limits_are_the_machine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(machine, "_CGROUP", tmp_path)
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: range(64), raising=False)
    whole = Machine.here()
    assert whole.num_cores == 64
    assert whole.free_bytes > 0
    (tmp_path / "cpu.max").write_text("max 100000\n")
    (tmp_path / "memory.max").write_text("max\n")
    assert Machine.here().num_cores == 64
    (tmp_path / "cpu.max").write_text("250000 100000\n")
    (tmp_path / "memory.max").write_text(f"{100 << 20}\n")
    (tmp_path / "memory.current").write_text(f"{40 << 20}\n")
    assert Machine.here() == Machine(2, 60 << 20)
    (tmp_path / "cpu.max").write_text("50000 100000\n")
    assert Machine.here().num_cores == 1


@pytest.mark.parametrize(
    ("num_cores", "num_workers", "threads"), [(1, 1, 1), (2, 1, 1), (4, 1, 3), (4, 4, 1), (16, 4, 3)]
)
def test_a_worker_leaves_one_core_of_its_share(num_cores: int, num_workers: int, threads: int) -> None:
    assert Machine(num_cores, 1 << 30).threads_of(num_workers) == threads
