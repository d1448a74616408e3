"""Commands whose standard streams are closed, full, or pipes that nobody reads: no traceback, a status."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[4]
PROGRAM = """
import sys
from common.process.standard_streams import complain, run_command

def run():
    {body}
    return 0

sys.exit(run_command("prog", run))
"""
LONG = 'for _ in range(100_000): print("a line of some length")'


def _run(body: str, redirections: str) -> tuple[int, str]:
    """Run a program in a shell; its exit status and what reached the shell's stderr."""
    program = PROGRAM.format(body=body)
    ended = subprocess.run(
        ["bash", "-c", f'"{sys.executable}" -c "$PROGRAM" {redirections}'],
        env={**os.environ, "PROGRAM": program, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    return ended.returncode, ended.stderr


def test_a_reader_that_has_gone_is_no_word() -> None:
    assert _run(LONG, '| head -1 >/dev/null; exit "${PIPESTATUS[0]}"') == (141, "")


def test_a_help_whose_reader_has_gone_neither() -> None:
    assert _run(f"{LONG}\n    raise SystemExit(0)", '| head -1 >/dev/null; exit "${PIPESTATUS[0]}"') == (
        141,
        "",
    )


@pytest.mark.parametrize("body", [LONG, 'sys.stdout.write("short")'])
def test_a_full_disk_is_a_sentence(body: str) -> None:
    assert _run(body, ">/dev/full") == (
        1,
        "prog: the output cannot be written: No space left on device.\n",
    )


@pytest.mark.parametrize("redirections", [">&-", "<&-", "2>&-", "<&- >&- 2>&-", "2>/dev/full"])
def test_closed_streams_are_none(redirections: str) -> None:
    body = 'sys.stdout.write("out"); complain("err"); assert sys.stdin is not None; return 7'
    status, errors = _run(body, redirections)
    assert status == 7
    assert errors == ("" if "2>" in redirections else "err\n")


def test_no_file_takes_the_place_of_a_closed_stream(tmp_path: Path) -> None:
    path = tmp_path / "file"
    body = f'file = open("{path}", "w"); sys.stdout.write("out"); sys.stdout.flush(); complain("err")'
    assert _run(body, "<&- >&- 2>&-")[0] == 0
    assert path.read_text() == ""


def test_what_is_wrong_with_a_file_is_not_taken_for_the_output() -> None:
    status, errors = _run('raise OSError(28, "No space left on device", "/some/file")', "")
    assert status == 1
    assert "Traceback" in errors
    assert "/some/file" in errors
