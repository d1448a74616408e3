"""`training/session.sh`: pieces are joined, a session outlives its command, and its end is told."""

from __future__ import annotations

import lzma
import os
import stat
import subprocess
import sys
from pathlib import Path

import pytest

SCRIPT = Path(__file__).parents[3] / "training" / "session.sh"
# In the place of python3: runs a line of code as that does; for a session it notes its arguments, waits until
# it may go on, leaves a checkpoint, ends as told.
PROGRAM = """#!/usr/bin/env bash
[[ $1 == -c ]] && exec {python} "$@"
echo "$@"
until [[ -f {folder}/go ]]; do sleep 0.05; done
mkdir -p {folder}/checkpoint && echo state > {folder}/checkpoint/checkpoint.json
exit "$(cat {folder}/go)"
"""


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    folder = tmp_path / "session"
    (folder / "a").mkdir(parents=True)
    (folder / "b").mkdir()
    program = tmp_path / "bin" / "python3"
    program.parent.mkdir()
    program.write_text(PROGRAM.format(folder=folder, python=sys.executable))
    program.chmod(program.stat().st_mode | stat.S_IXUSR)
    return folder


def run(folder: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    path = f"{folder.parent / 'bin'}:{os.environ['PATH']}"
    return subprocess.run(
        [str(SCRIPT), *arguments],
        env=os.environ | {"PATH": path},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )


def test_pieces_are_joined_in_their_order(folder: Path) -> None:
    data = lzma.compress(b"weights" * 1_000)
    (folder / "b" / "kokoro.safetensors.xz.part.01").write_bytes(data[40:])
    (folder / "a" / "kokoro.safetensors.xz.part.00").write_bytes(data[:40])
    (folder / "a" / "voices.tgz.part.00").write_bytes(b"one")
    (folder / "a" / "voices.tgz.part.01").write_bytes(b"two")
    (folder / "go").write_text("0")
    assert run(folder, "start", str(folder), "1").returncode == 0
    assert (folder / "kokoro.safetensors").read_bytes() == b"weights" * 1_000
    assert (folder / "voices.tgz").read_bytes() == b"onetwo"
    assert run(folder, "wait", str(folder), "30", str(folder / "copy")).returncode == 0


def test_a_session_is_waited_for_in_parts(folder: Path) -> None:
    copy = folder / "copy"
    assert run(folder, "start", str(folder), "2", "--steps", "7").returncode == 0
    waited = run(folder, "wait", str(folder), "0.2", str(copy))
    assert waited.returncode == 75
    assert "still running" in waited.stdout
    assert not (copy / "checkpoint.json").exists()
    (folder / "go").write_text("0")
    done = run(folder, "wait", str(folder), "30", str(copy))
    assert done.returncode == 0
    assert (copy / "checkpoint.json").read_text() == "state\n"
    log = (copy / "log").read_text()
    assert log.startswith(
        "-m torch.distributed.run --standalone --nproc-per-node 2 -m training session --text "
    )
    assert log.endswith("--steps 7\n")


def test_a_session_that_fails_is_told(folder: Path) -> None:
    (folder / "go").write_text("3")
    assert run(folder, "start", str(folder), "1").returncode == 0
    assert run(folder, "wait", str(folder), "30", str(folder / "copy")).returncode == 3
    assert not (folder / "copy" / "checkpoint.json").exists()


def test_usage() -> None:
    shown = subprocess.run([str(SCRIPT)], capture_output=True, text=True, timeout=30, check=False)
    assert shown.returncode == 2
    assert "training/session.sh start FOLDER GPUS FLAGS" in shown.stdout
