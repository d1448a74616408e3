"""What the README shows works as it stands there."""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
from pathlib import Path

from tests.e2e.serve_process import ServeProcess
from tests.service_process import ROOT


def test_the_python_example_runs(tmp_path: Path) -> None:
    found = re.search(r"```python\n(.*?)```", (ROOT / "README.md").read_text(encoding="utf-8"), re.DOTALL)
    assert found is not None
    shutil.copy(ROOT / "parakeet" / "recordings" / "goforward.wav", tmp_path / "recording.wav")
    with ServeProcess("--backend", "native", "--model-size", "tiny") as serve:
        serve.wait_until_ready()
        program = found[1].replace("ws://127.0.0.1:8000", f"ws://127.0.0.1:{serve.ws_port}")
        ended = subprocess.run(
            [sys.executable, "-c", program],
            cwd=tmp_path,
            env={"PYTHONPATH": str(ROOT), "PATH": "/usr/bin:/bin"},
            capture_output=True,
            timeout=90,
            check=False,
            text=True,
        )
        assert ended.returncode == 0, ended.stderr
        assert ended.stdout.splitlines()[-1] == "go forward ten meters"
