"""The TypeScript client: its own tests, and a recording through a real server."""

from __future__ import annotations

import json
import shutil
import subprocess
from pathlib import Path

import pytest

from tests.e2e.serve_process import ServeProcess
from tests.media_files import read_pcm
from tests.ports import HOST
from tests.service_process import ROOT

FOLDER = ROOT / "clients" / "typescript"
RECORDING = ROOT / "parakeet" / "recordings" / "goforward.wav"

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(shutil.which("npm") is None, reason="npm is not installed (Debian: npm)"),
]


def run(*command: str, folder: Path, data: bytes | None = None) -> str:
    """Run a command; return what it printed. Fails with that where the command fails."""
    done = subprocess.run(command, cwd=folder, input=data, capture_output=True, timeout=400)
    output = done.stdout.decode() + done.stderr.decode()
    assert done.returncode == 0, output
    return done.stdout.decode()


@pytest.fixture(scope="module")
def client(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The client, built in a copy of its folder."""
    folder = tmp_path_factory.mktemp("root") / "clients" / "typescript"
    shutil.copytree(FOLDER, folder, ignore=shutil.ignore_patterns("node_modules", "dist"))
    run("npm", "ci", "--no-audit", "--no-fund", folder=folder)
    run("npm", "run", "build", folder=folder)
    return folder


def test_its_own_tests(client: Path) -> None:
    assert "# fail 0" in run("npm", "test", folder=client)


def test_the_page_has_this_client(client: Path) -> None:
    built = client.parents[1] / "ingress" / "page" / "client"
    run("npm", "run", "page", folder=client)
    served = ROOT / "ingress" / "page" / "client"
    files = {path.name: path.read_text() for path in served.iterdir()}
    assert files == {path.name: path.read_text() for path in built.iterdir()}, "run `npm run page`"


def test_a_recording_through_a_server(client: Path) -> None:
    rate, pcm = read_pcm(RECORDING)
    with ServeProcess("--backend", "native", "--model-size", "tiny") as serve:
        serve.wait_until_ready()
        address = f"ws://{HOST}:{serve.ws_port}/"
        printed = run(
            *("node", "--experimental-websocket", "examples/recording.mjs", address, str(rate)),
            folder=client,
            data=pcm,
        )
    results = [json.loads(line) for line in printed.splitlines()]
    assert results[-1] == {"text": "go forward ten meters", "is_final": True, "seq": results[-1]["seq"]}
    assert len(results) > 2
    assert [result["is_final"] for result in results].count(True) == 1
