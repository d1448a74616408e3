"""An environment for each client, with pinned versions: made when first wanted, and kept in `.clients/`."""

from __future__ import annotations

import hashlib
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

from tests.service_process import ROOT

_PINS: Final = Path(__file__).parent / "environments"
_CACHE: Final = ROOT / ".clients"
_TYPESCRIPT: Final = ROOT / "clients" / "typescript"
_INSTALL_S: Final = 300.0
_RUN_S: Final = 90.0


@dataclass(frozen=True, slots=True)
class Environment:
    """Where a client's programs run.

    command: what runs a program, whose file follows.   folder: where the program's file has to be, None for
    anywhere.   variables: further environment variables.
    """

    command: tuple[str, ...]
    suffix: str
    folder: Path | None = None
    variables: Mapping[str, str] = field(default_factory=dict)

    @contextmanager
    def started(
        self, program: str, files: Sequence[Path], variables: Mapping[str, str] | None = None
    ) -> Iterator[subprocess.Popen[str]]:
        """Run a program in a folder with these files; the client gets no setting of this machine's."""
        with tempfile.TemporaryDirectory(dir=self.folder, prefix="run-") as folder:
            for file in files:
                shutil.copy(file, folder)
            path = Path(folder) / f"example{self.suffix}"
            path.write_text(program, encoding="utf-8")
            environment = {
                **{name: os.environ[name] for name in ("PATH", "LANG") if name in os.environ},
                "HOME": folder,
                "PYTHONUNBUFFERED": "1",
                "NODE_NO_WARNINGS": "1",
                **self.variables,
                **(variables or {}),
            }
            process = subprocess.Popen(
                [*self.command, str(path)],
                cwd=folder,
                env=environment,
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE,
                text=True,
            )
            try:
                yield process
            finally:
                process.kill()
                process.communicate()

    def run(self, program: str, files: Sequence[Path], variables: Mapping[str, str] | None = None) -> str:
        """Run a program to its end and return what it printed; fails with all that where it fails."""
        with self.started(program, files, variables) as process:
            try:
                output, errors = process.communicate(timeout=_RUN_S)
            except subprocess.TimeoutExpired:
                process.kill()
                output, errors = process.communicate()
                raise AssertionError(f"no end within {_RUN_S:g} s; printed:\n{output}\n{errors}") from None
            assert process.returncode == 0, f"status {process.returncode}; printed:\n{output}\n{errors}"
            return output


def environment(name: str) -> Environment:
    """Return the environment of a client, installed."""
    if name == "plain":
        return Environment((sys.executable,), ".py")
    if name == "shell":
        return Environment(("bash", "-euo", "pipefail"), ".sh")
    if name == "parakeet-python":
        return Environment((sys.executable,), ".py", variables={"PYTHONPATH": str(ROOT)})
    if name == "parakeet-typescript":
        folder = _installed(name, _TYPESCRIPT, _make_typescript)
        return Environment(("node", "--experimental-websocket"), ".mjs", folder)
    if name.endswith("-javascript"):
        return Environment(("node",), ".mjs", _installed(name, _PINS / name, _make_node))
    folder = _installed(name, _PINS / f"{name}.txt", _make_python)
    return Environment((str(folder / "bin" / "python"),), ".py")


def _installed(name: str, source: Path, make: Callable[[Path, Path], None]) -> Path:
    """Return the folder of an environment; one whose pins have changed is another."""
    folder = _CACHE / f"{name}-{_digest(source)}"
    done = folder / ".complete"
    if not done.exists():
        shutil.rmtree(folder, ignore_errors=True)
        folder.parent.mkdir(exist_ok=True)
        make(source, folder)
        done.touch()
    return folder


def _digest(source: Path) -> str:
    files = [source]
    if source.is_dir():
        skipped = {"node_modules", "dist"}
        files = [
            file
            for file in sorted(source.rglob("*"))
            if file.is_file() and not skipped & set(file.relative_to(source).parts)
        ]
    digest = hashlib.sha256(sys.version.encode())
    for file in files:
        digest.update(file.read_bytes())
    return digest.hexdigest()[:12]


def _make_python(pins: Path, folder: Path) -> None:
    _install(sys.executable, "-m", "venv", str(folder))
    options = ("--only-binary", ":all:", "--disable-pip-version-check", "-q")
    _install(str(folder / "bin" / "python"), "-m", "pip", "install", *options, "-r", str(pins))


def _make_node(pins: Path, folder: Path) -> None:
    shutil.copytree(pins, folder)
    _install("npm", "ci", "--no-audit", "--no-fund", folder=folder)


def _make_typescript(source: Path, folder: Path) -> None:
    shutil.copytree(source, folder, ignore=shutil.ignore_patterns("node_modules", "dist"))
    _install("npm", "ci", "--no-audit", "--no-fund", folder=folder)
    _install("npm", "run", "build", folder=folder)


def _install(*command: str, folder: Path | None = None) -> None:
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True, timeout=_INSTALL_S)
    assert done.returncode == 0, f"{' '.join(command)}\n{done.stdout}\n{done.stderr}"
