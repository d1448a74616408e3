"""What the exit status of each command means is the same, as docs/operations.md has it."""

from __future__ import annotations

import importlib.util
import subprocess
import sys
from pathlib import Path

import pytest

from parakeet import cli
from parakeet.check.clips import RECORDINGS
from tests.ports import free_ports
from tests.service_process import ROOT

FAILED, WRONG = 1, 2
# An installation of an ingress lacks the packages of a worker.
HAS_WORKER = importlib.util.find_spec("torch") is not None
HOPELESS = "redis://127.0.0.1:1/0"


@pytest.mark.parametrize(
    ("status", "argv"),
    [
        (WRONG, ["nonsense"]),
        (WRONG, ["serve", "--port", "99999"]),
        (WRONG, ["serve", "--auth-keys-file", "none.json", "--backend", "null"]),
        (FAILED, ["serve", "--redis-url", HOPELESS, "--backend", "null"]),
        (WRONG, ["ingress", "--redis-url", "http://127.0.0.1"]),
        (WRONG, ["ingress", "--auth-keys-file", "none.json", "--redis-url", HOPELESS]),
        (FAILED, ["ingress", "--redis-url", HOPELESS, "--redis-outage-s", "1"]),
        (WRONG, ["worker", "--redis-url", "http://127.0.0.1"]),
        (WRONG, ["worker", "--redis-url", HOPELESS, "--model", "none.nemo"]),
        (WRONG, ["status", "--status-port", "x"]),
        (FAILED, ["status", "--status-port", "1"]),
        (WRONG, ["health", "--redis-url", "http://127.0.0.1"]),
        (FAILED, ["health", "--redis-url", HOPELESS]),
        (WRONG, ["transcribe"]),
        (WRONG, ["transcribe", "short.wav", "--url", "127.0.0.1"]),
        (WRONG, ["transcribe", "short.wav", "--output", "none/text.txt"]),
        (WRONG, ["transcribe", "short.wav", "--phrases-file", "none.txt"]),
        (FAILED, ["transcribe", "none.wav"]),
        (FAILED, ["transcribe", "short.wav", "--url", "ws://127.0.0.1:1"]),
        (WRONG, ["check", "--backend", "null"]),
        (WRONG, ["bench"]),
        (WRONG, ["bench", "ws://127.0.0.1:1", "--json", "none/figures.json"]),
        (FAILED, ["bench", "ws://127.0.0.1:1", "--recordings", "none.wav"]),
        (FAILED, ["bench", "ws://127.0.0.1:1", "--streams", "1", "--duration-s", "1", "--ramp-s", "0"]),
        (WRONG if HAS_WORKER else FAILED, ["model"]),
        (WRONG if HAS_WORKER else FAILED, ["model", "inspect", "none.nemo"]),
        (FAILED, ["model", "export", "tiny", "--output", "/dev/null/model"]),
        (WRONG, ["keys", "list"]),
        (WRONG, ["keys", "list", "--auth-keys-file", "none.json"]),
        (WRONG, ["redis-users", "create"]),
        (FAILED, ["redis-users", "create", "--folder", "/dev/null/users"]),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else str(value),
)
def test_a_wrong_value_and_a_failure_are_told_apart(status: int, argv: list[str], tmp_path: Path) -> None:
    assert argv[0] in (*cli.RUN, "nonsense")
    if argv[0] in ("serve", "ingress"):
        ports = zip(("--port", "--ws-port", "--status-port"), map(str, free_ports(3)), strict=True)
        # Those of the command itself come last, so they count.
        argv = [argv[0], *(word for pair in ports for word in pair), *argv[1:]]
    (tmp_path / "short.wav").write_bytes((RECORDINGS / "goforward.wav").read_bytes())
    ended = subprocess.run(
        [sys.executable, "-m", "parakeet.cli", *argv],
        cwd=tmp_path,
        env={"PYTHONPATH": str(ROOT), "PATH": "/usr/bin:/bin", "HOME": str(tmp_path)},
        stdin=subprocess.DEVNULL,
        capture_output=True,
        timeout=240,
    )
    output = ended.stdout.decode() + ended.stderr.decode()
    assert ended.returncode == status, output
    assert "Traceback" not in output


def test_every_command_was_asked() -> None:
    (table,) = [
        mark.args[1]
        for mark in test_a_wrong_value_and_a_failure_are_told_apart.pytestmark  # type: ignore[attr-defined]
        if mark.name == "parametrize"
    ]
    assert {argv[0] for _, argv in table} >= set(cli.RUN)


def test_the_document_has_every_status() -> None:
    text = (ROOT / "docs" / "operations.md").read_text(encoding="utf-8")
    table = text.split("| Exit status | Meaning |")[1].split("\n\n")[0]
    assert [int(row.split("|")[1]) for row in table.splitlines()[2:]] == [0, 1, 2, 70, 130, 141]
