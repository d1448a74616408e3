"""The ingress image's installation, in a fresh virtual environment: no torch, and it serves."""

from __future__ import annotations

import os
import subprocess
import sys
import venv
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
import redis

from parakeet.serve.embedded_redis import EmbeddedRedis
from parakeet.terminal.status import read_status
from tests.ports import free_ports, wait_until_listening
from tests.waiting import wait_until

ROOT = Path(__file__).parents[3]
IMAGE_PARTS = ("common", "ingress", "parakeet")


@pytest.fixture(scope="module")
def ingress_python(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Python of an environment made as docker/ingress.Dockerfile makes it."""
    directory = tmp_path_factory.mktemp("ingress")
    source = directory / "source"
    source.mkdir()
    for name in (*IMAGE_PARTS, "pyproject.toml", "README.md", "requirements"):
        # A copy, since pip leaves a build folder beside the source.
        subprocess.run(["cp", "-r", str(ROOT / name), str(source / name)], check=True, timeout=60)
    venv.create(directory / "venv", with_pip=True)
    python = directory / "venv" / "bin" / "python"
    pip = [str(python), "-m", "pip", "install", "-q", "--disable-pip-version-check"]
    for arguments in (["-r", "requirements/ingress.txt"], ["--no-deps", "."]):
        subprocess.run([*pip, *arguments], cwd=source, check=True, timeout=400, stdin=subprocess.DEVNULL)
    return python


@contextmanager
def running(
    command: list[str], environment: dict[str, str], directory: Path
) -> Iterator[subprocess.Popen[bytes]]:
    process = subprocess.Popen(command, env=environment, cwd=directory, stdin=subprocess.DEVNULL)
    try:
        yield process
    finally:
        process.terminate()
        process.wait(30)


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_an_ingress_runs_where_there_is_no_torch(ingress_python: Path, tmp_path: Path) -> None:
    heavy = ["torch", "triton", "numpy", "gpu_worker"]
    absent = f"import importlib.util as u; print([m for m in {heavy} if u.find_spec(m)])"
    found = subprocess.run(
        [str(ingress_python), "-c", absent],
        cwd=tmp_path,
        capture_output=True,
        check=True,
        timeout=60,
        text=True,
    )
    assert found.stdout.strip() == "[]"

    (status_port, ws_port) = free_ports(2)
    clean = {
        name: value for name, value in os.environ.items() if not name.startswith(("PARAKEET_", "PYTHON"))
    }
    server = str(ingress_python.with_name("parakeet-server"))
    with EmbeddedRedis() as valkey:
        environment = clean | {"PARAKEET_REDIS_URL": valkey.url, "PARAKEET_WS_PORT": str(ws_port)}
        command = [server, "ingress", "--port", "0", "--status-port", str(status_port)]
        with running(command, environment, tmp_path) as process:
            assert wait_until_listening("127.0.0.1", ws_port, 60.0)
            client = redis.Redis.from_url(valkey.url)
            wait_until(
                lambda: client.zcard("px:{0}:ingresses") == 1, 30.0, "the ingress has announced itself"
            )
            assert read_status("127.0.0.1", status_port)["connected_streams"] == 0
            # The clients run there too.
            status = subprocess.run(
                [server, "status", "--status-port", str(status_port), "--json"],
                cwd=tmp_path,
                env=clean,
                capture_output=True,
                check=True,
                timeout=60,
            )
            assert b'"type": "status"' in status.stdout
            worker = [sys.executable, "-m", "gpu_worker", "--model-size", "tiny", "--device", "cpu"]
            with running(worker, environment | {"PYTHONPATH": str(ROOT)}, tmp_path):
                wait_until(lambda: client.zcard("px:{0}:workers") == 1, 120.0, "the worker has a lease")
                recording = ROOT / "parakeet" / "recordings" / "goforward.wav"
                heard = subprocess.run(
                    [server, "transcribe", str(recording), "--ws-port", str(ws_port)],
                    cwd=tmp_path,
                    env=clean,
                    capture_output=True,
                    timeout=120,
                    check=True,
                    text=True,
                )
            assert heard.stdout == "go forward ten meters\n"
            client.close()
            process.terminate()
            assert process.wait(30) == 0
