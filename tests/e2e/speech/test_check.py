"""`parakeet-server check` as a user runs it."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[3]


@pytest.mark.slow
def test_the_bundled_model_passes() -> None:
    ended = subprocess.run(
        [sys.executable, "-m", "parakeet.cli", "check", "--model-size", "tiny", "--device", "cpu", "--json"],
        cwd=ROOT,
        capture_output=True,
        timeout=500,
        check=False,
        text=True,
        stdin=subprocess.DEVNULL,
    )
    told = json.loads(ended.stdout)
    assert {one["name"] for one in told["figures"]} >= {"word errors", "streams in real time"}
    texts = {one["file"]: one["text"] for one in told["recordings"]}
    assert texts["goforward.wav"] == "go forward ten meters"
    assert len(texts) == 4
    assert ended.returncode == 0, ended.stdout + ended.stderr
    assert told["passed"] is True
