"""What the README shows works as it stands there."""

from __future__ import annotations

import subprocess
import sys

from tests.documents import ROOT, blocks
from tests.e2e.serve_process import ServeProcess


def test_the_python_example_runs() -> None:
    (example,) = blocks(ROOT / "README.md", "python")
    with ServeProcess("--backend", "native", "--model-size", "tiny") as serve:
        serve.wait_until_ready()
        program = example.text.replace("ws://127.0.0.1:8000", f"ws://127.0.0.1:{serve.ws_port}")
        ended = subprocess.run(
            [sys.executable, "-c", program],
            cwd=ROOT,
            env={"PYTHONPATH": str(ROOT), "PATH": "/usr/bin:/bin"},
            capture_output=True,
            timeout=240,
            check=False,
            text=True,
        )
        assert ended.returncode == 0, ended.stderr
        shown = ended.stdout.splitlines()
        assert shown[-1] == "final: go forward ten meters"
        assert len(set(shown)) == len(shown) > 1, "a line a change"
        assert all(line.startswith("partial: ") for line in shown[:-1])
