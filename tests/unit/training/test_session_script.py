"""`training/session.sh`: files come in pieces, a session outlives its command, what it leaves is whole."""

from __future__ import annotations

import json
import os
import signal
import stat
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

SCRIPT = Path(__file__).parents[3] / "training" / "session.sh"
# In the place of python3: runs a line of code as that does; makes the synthesiser's file; for a session it
# notes its arguments, waits until it may go on, and ends as told.
PROGRAM = """#!/usr/bin/env bash
[[ $1 == -c ]] && exec {python} "$@"
[[ $3 == synthesiser ]] && exec cp "$4" "${{@: -1}}"
echo "$@"
until [[ -f {folder}/go ]]; do sleep 0.05; done
exit "$(cat {folder}/go)"
"""


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    folder = tmp_path / "session"
    folder.mkdir()
    (folder / "kokoro-1.bin").write_bytes(b"weights")
    program = tmp_path / "bin" / "python3"
    program.parent.mkdir()
    program.write_text(PROGRAM.format(folder=folder, python=sys.executable))
    program.chmod(program.stat().st_mode | stat.S_IXUSR)
    return folder


def environment(folder: Path) -> dict[str, str]:
    return os.environ | {"PATH": f"{folder.parent / 'bin'}:{os.environ['PATH']}"}


def run(folder: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [str(SCRIPT), *arguments],
        env=environment(folder),
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )


def leave_checkpoint(folder: Path, step: int) -> None:
    """As `save_checkpoint` does: parts, the manifest, then the old parts go."""
    checkpoint = folder / "checkpoint"
    checkpoint.mkdir(exist_ok=True)
    names = [f"state-{step:07d}.{number}" for number in (0, 1)]
    for name in names:
        (checkpoint / name).write_text(name)
    manifest = json.dumps({"parts": [{"name": name, "sha256": ""} for name in names]}, indent=1)
    (checkpoint / "checkpoint.json").write_text(manifest)
    for path in checkpoint.glob("state-*"):
        if path.name not in names:
            path.unlink()


def steps(copy: Path) -> list[int]:
    """Of the checkpoints that are kept; each must be whole."""
    found = []
    for path in sorted(copy.glob("checkpoint-*")):
        manifest = json.loads((path / "checkpoint.json").read_text())
        for part in manifest["parts"]:
            assert (path / part["name"]).read_text() == part["name"]
        found.append(int(path.name.partition("-")[2]))
    return found


def until(condition: Callable[[], bool]) -> None:
    ends = time.monotonic() + 60
    while not condition():
        assert time.monotonic() < ends
        time.sleep(0.02)


def test_files_travel_in_pieces(folder: Path, tmp_path: Path) -> None:
    noise = os.urandom(2_500_000)
    (folder / "text.tsv.xz").write_bytes(noise)
    (folder / "wheels").mkdir()
    (folder / "wheels" / "one.whl").write_bytes(b"wheel")
    assert run(folder, "pack", str(folder), "1", str(tmp_path / "pieces")).returncode == 0
    pieces = sorted((tmp_path / "pieces").glob("*/pack.*"))
    assert [path.parent.name for path in pieces] == ["00", "01", "02"]
    assert max(path.stat().st_size for path in pieces) <= 1_000_000
    there = tmp_path / "there"
    assert run(folder, "unpack", str(there), str(tmp_path / "pieces")).returncode == 0
    assert (there / "text.tsv.xz").read_bytes() == noise
    assert (there / "wheels" / "one.whl").read_bytes() == b"wheel"
    pieces[1].unlink()
    assert run(folder, "unpack", str(tmp_path / "less"), str(tmp_path / "pieces")).returncode != 0


def test_a_session_is_waited_for_in_parts(folder: Path) -> None:
    copy = folder / "copy"
    (folder / "flite").mkdir()
    (folder / "flite" / "flite").write_text("")
    (folder / "flite" / "flite").chmod(0o755)
    assert run(folder, "start", str(folder), "2", "--steps", "7").returncode == 0
    assert (folder / "kokoro.safetensors").read_bytes() == b"weights"
    leave_checkpoint(folder, 100)
    waited = run(folder, "wait", str(folder), "0", str(copy))
    assert waited.returncode == 75
    assert "still running" in waited.stdout
    assert steps(copy) == [100]
    leave_checkpoint(folder, 220)
    (folder / "go").write_text("0")
    assert run(folder, "wait", str(folder), "30", str(copy)).returncode == 0
    assert steps(copy) == [220]
    log = (copy / "log").read_text()
    assert log.startswith(
        "-m torch.distributed.run --standalone --nproc-per-node 2 -m training session --text "
    )
    assert log.endswith(f"--flite {folder}/flite/flite --steps 7\n")


def test_what_is_kept_is_whole_when_the_command_is_killed(folder: Path) -> None:
    copy = folder / "copy"
    assert run(folder, "start", str(folder), "1").returncode == 0
    waiting = subprocess.Popen(
        [str(SCRIPT), "wait", str(folder), "60", str(copy)], env=environment(folder), start_new_session=True
    )
    try:
        for step in (10, 20, 30):
            leave_checkpoint(folder, step)
            kept = copy / f"checkpoint-{step:07d}"
            # The one before goes when the new one is there.
            until(lambda kept=kept: list(copy.glob("checkpoint-*")) == [kept])  # type: ignore[misc]
    finally:
        os.killpg(waiting.pid, signal.SIGKILL)
        waiting.wait()
    assert steps(copy) == [30]
    # Another machine, with nothing but what was kept.
    there = folder.parent / "there"
    there.mkdir()
    (there / "kokoro.safetensors").write_bytes(b"weights")
    (there / "later").mkdir()
    (copy / "checkpoint-0000030").rename(there / "checkpoint-0000030")
    (there / "later" / "checkpoint-0000009").mkdir()  # of an earlier machine, wherever it was put
    (there / "later" / "checkpoint-0000009" / "checkpoint.json").write_text("old")
    assert run(folder, "start", str(there), "1").returncode == 0
    assert "state-0000030.0" in (there / "checkpoint" / "checkpoint.json").read_text()
    (folder / "go").write_text("0")
    assert run(folder, "wait", str(there), "30", str(copy)).returncode == 0
    assert run(folder, "wait", str(folder), "30", str(copy)).returncode == 0


def test_a_session_that_fails_is_told(folder: Path) -> None:
    (folder / "go").write_text("3")
    assert run(folder, "start", str(folder), "1").returncode == 0
    assert run(folder, "wait", str(folder), "30", str(folder / "copy")).returncode == 3
    assert steps(folder / "copy") == []


def test_usage() -> None:
    shown = subprocess.run([str(SCRIPT)], capture_output=True, text=True, timeout=30, check=False)
    assert shown.returncode == 2
    assert "training/session.sh start FOLDER GPUS FLAGS" in shown.stdout
