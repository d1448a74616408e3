"""A container engine and docker compose, as far as `make test-compose` needs them.

Where no engine runs, one is started as root, with a folder of its own for images, which is kept.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Final

from tests.waiting import wait_until

CACHE: Final = Path(os.environ.get("COMPOSE_CACHE", Path.home() / ".cache" / "parakeet-compose"))
_BUILD_TIMEOUT_S: Final = 1800


class Engine:
    """What `docker` reaches. address: of its socket; empty for the one that is running."""

    def __init__(self, address: str = "") -> None:
        # The classic builder: BuildKit needs a plug-in that not every system has.
        self._environment = {**os.environ, "DOCKER_BUILDKIT": "0"}
        if address:
            self._environment["DOCKER_HOST"] = address

    def run(
        self,
        *command: str,
        timeout_s: float = 120,
        environment: Mapping[str, str] | None = None,
        cwd: Path | None = None,
    ) -> str:
        """Run a program that talks to the engine; what it prints. A failure has both outputs."""
        done = subprocess.run(
            command,
            env={**self._environment, **(environment or {})},
            cwd=cwd,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            errors="replace",
            timeout=timeout_s,
            check=False,
        )
        assert done.returncode == 0, f"{' '.join(command)}\n{done.stdout[-8000:]}\n{done.stderr[-8000:]}"
        return done.stdout

    def docker(self, *arguments: str, timeout_s: float = 120) -> str:
        """Run `docker`."""
        return self.run("docker", *arguments, timeout_s=timeout_s)

    def has_image(self, name: str) -> bool:
        """Whether an image is there."""
        return bool(self.docker("images", "--quiet", name).strip())

    def build(self, dockerfile: Path, name: str, arguments: Sequence[str] = ()) -> None:
        """Build an image of this project. The build has the host's network, where package registries are."""
        options = [part for argument in arguments for part in ("--build-arg", argument)]
        self.docker(
            *("build", "--network=host", "-f", str(dockerfile), "-t", name, *options, "."),
            timeout_s=_BUILD_TIMEOUT_S,
        )


@contextmanager
def engine() -> Iterator[Engine]:
    """The engine that runs, or one that is started for the time."""
    assert shutil.which("docker"), "docker is not installed (Debian: docker.io)"
    running = subprocess.run(["docker", "info"], capture_output=True, timeout=60, check=False)
    if running.returncode == 0 and b"Server Version" in running.stdout:
        yield Engine()
        return
    assert shutil.which("dockerd"), "no container engine runs, and there is no dockerd to start"
    assert os.geteuid() == 0, "no container engine runs, and only root can start one"
    CACHE.mkdir(parents=True, exist_ok=True)
    with _folder() as folder, (CACHE / "log").open("wb") as log:
        address = f"unix://{folder}/socket"
        process = subprocess.Popen(
            [
                *("dockerd", "--data-root", str(CACHE / "data"), "--exec-root", f"{folder}/run"),
                *("--pidfile", f"{folder}/pid", "--host", address),
            ],
            stdout=log,
            stderr=subprocess.STDOUT,
        )
        try:
            wait_until((Path(folder) / "socket").exists, 60.0, "the container engine")
            started = Engine(address)
            started.docker("info")
            yield started
        finally:
            process.terminate()
            process.wait()


def _folder() -> tempfile.TemporaryDirectory[str]:
    # Network namespaces of the engine may stay mounted for a moment.
    return tempfile.TemporaryDirectory(prefix="parakeet-docker-", ignore_cleanup_errors=True)


class Compose:
    """One project of docker compose, with the plug-in, or with version 1 where only that is installed."""

    def __init__(
        self, engine: Engine, project: str, files: Sequence[Path], environment: Mapping[str, str]
    ) -> None:
        self._engine = engine
        self._environment = environment
        plugin = subprocess.run(["docker", "compose", "version"], capture_output=True, check=False)
        if plugin.returncode == 0:
            self._command = ["docker", "compose", "--project-directory", "."]
        else:
            assert shutil.which("docker-compose"), "docker compose is not installed (Debian: docker-compose)"
            # Version 1 knows no name at the top.
            text = files[0].read_text().replace("\nname: parakeet\n", "\n", 1)
            CACHE.mkdir(parents=True, exist_ok=True)
            nameless = CACHE / files[0].name
            nameless.write_text(text)
            files = [nameless, *files[1:]]
            self._command = ["docker-compose", "--project-directory", "."]
        self._command += ["-p", project, "--profile", "cpu"]
        self._command += [part for file in files for part in ("-f", str(file))]
        self.project = project

    def __call__(self, *arguments: str, timeout_s: float = 300) -> str:
        """Run a command of compose."""
        return self._engine.run(
            *self._command, *arguments, timeout_s=timeout_s, environment=self._environment
        )

    def containers(self, service: str) -> list[str]:
        """The running containers of a service, oldest first."""
        return self(*("ps", "--quiet", service)).split()
