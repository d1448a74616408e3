"""The images of compose.yaml, built from its Dockerfiles, also where no image registry can be reached.

There, Debian's Python stands in for `python:3.12-slim`, and Debian's redis-server for Valkey.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tempfile
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any, Final

from tests.containers.engine import CACHE, Engine
from tests.service_process import ROOT

PYTHON: Final = "python:3.12-slim"
VALKEY: Final = "valkey/valkey:8-alpine"
_DEBIAN: Final = "bookworm"
_PACKAGES: Final = "python3,python3-pip,python3-venv,ca-certificates,redis-server"
_PULL_TIMEOUT_S: Final = 300
# The real image listens on all addresses by itself.
_VALKEY_STAND_IN: Final = f"""
FROM {PYTHON}
RUN ln -s redis-server /usr/bin/valkey-server && ln -s redis-cli /usr/bin/valkey-cli \\
 && echo '[ "$1" != valkey-server ] || set -- "$@" --protected-mode no --bind 0.0.0.0' > /entrypoint \\
 && echo 'exec "$@"' >> /entrypoint
ENTRYPOINT ["sh", "/entrypoint"]
"""


def prepare_bases(engine: Engine) -> None:
    """Have the images that others build on: pulled, or stand-ins for them."""
    if not all(map(engine.has_image, (PYTHON, VALKEY))):
        try:
            for name in (PYTHON, VALKEY):
                engine.docker("pull", name, timeout_s=_PULL_TIMEOUT_S)
        except (AssertionError, subprocess.TimeoutExpired):
            _make_stand_ins(engine)


def _make_stand_ins(engine: Engine) -> None:
    assert shutil.which("debootstrap"), "no image registry, and debootstrap is not installed"
    root = CACHE / "debian"
    if not (root / "usr/bin/redis-server").exists():
        shutil.rmtree(root, ignore_errors=True)
        engine.run(
            *("debootstrap", "--variant=minbase", f"--include={_PACKAGES}", _DEBIAN, str(root)),
            timeout_s=1200,
        )
    certificates = Path("/etc/ssl/certs/ca-certificates.crt")
    shutil.copy(certificates, root / certificates.relative_to("/"))
    (root / "etc/pip.conf").write_text(f"[global]\nbreak-system-packages = true\ncert = {certificates}\n")
    if not (root / "usr/bin/python").exists():
        (root / "usr/bin/python").symlink_to("python3")
    engine.run("sh", "-c", f"tar -C {root} -c . | docker import - {PYTHON}", timeout_s=600)
    with tempfile.TemporaryDirectory() as folder:
        (Path(folder) / "Dockerfile").write_text(_VALKEY_STAND_IN)
        engine.docker("build", "-t", VALKEY, folder, timeout_s=300)


def build(engine: Engine, ingress: str, worker: str) -> None:
    """Build the two images of this project, the worker's for CPU."""
    engine.build(ROOT / "docker" / "ingress.Dockerfile", ingress)
    with _torch_arguments() as torch:
        engine.build(ROOT / "docker" / "worker.Dockerfile", worker, [f"PIP_TORCH_ARGS={torch}"])


@contextmanager
def _torch_arguments() -> Iterator[str]:
    """How pip finds torch inside a build: as PIP_TORCH_ARGS says, or from the wheel that this machine has."""
    given = os.environ.get("PIP_TORCH_ARGS")
    if given:
        yield given
        return
    wheels = CACHE / "wheels"
    if not list(wheels.glob("torch-*.whl")):
        version = _torch_version()
        command = (sys.executable, "-m", "pip", "download", "-q", "--no-deps", f"torch=={version}")
        subprocess.run([*command, "-d", str(wheels)], check=True, timeout=1200)
    with ThreadingHTTPServer(("127.0.0.1", 0), partial(_Quiet, directory=str(wheels))) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        try:
            yield f"--find-links http://127.0.0.1:{server.server_port}/"
        finally:
            server.shutdown()


def _torch_version() -> str:
    text = (ROOT / "docker" / "worker.Dockerfile").read_text()
    return text.split("ARG TORCH_VERSION=", 1)[1].split()[0]


class _Quiet(SimpleHTTPRequestHandler):
    def log_message(self, *_: Any) -> None:
        """Say nothing."""
