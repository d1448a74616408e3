"""compose.yaml without a Docker engine: its own commands and environments, started as processes.

What differs from the containers is only where things are: the host `redis` and the ports are replaced,
and the programs are those of this environment.
"""

from __future__ import annotations

import os
import re
import subprocess
import sys
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import redis
import yaml

from parakeet.embedded_redis import find_server
from parakeet.readiness import wait_until_listening
from parakeet.status import read_status
from tests.ports import free_ports
from tests.waiting import wait_until

ROOT = Path(__file__).parents[2]


def _interpolate(value: Any) -> Any:
    """Replace ${NAME:-default} by the default, as compose does where the variable is not set."""
    if isinstance(value, str):
        return re.sub(r"\$\{[A-Z_]+:-([^}]*)\}", r"\1", value)
    if isinstance(value, list):
        return [_interpolate(item) for item in value]
    if isinstance(value, dict):
        return {key: _interpolate(item) for key, item in value.items()}
    return value


COMPOSE: dict[str, Any] = _interpolate(yaml.safe_load((ROOT / "compose.yaml").read_text(encoding="utf-8")))
SERVICES: dict[str, Any] = COMPOSE["services"]


def test_the_file_has_the_shape_that_compose_takes() -> None:
    checked = subprocess.run(
        [
            *(sys.executable, "-m", "check_jsonschema"),
            *("--builtin-schema", "vendor.compose-spec", str(ROOT / "compose.yaml")),
        ],
        capture_output=True,
        timeout=60,
        check=False,
    )
    assert checked.returncode == 0, checked.stdout + checked.stderr


def test_every_service_is_watched_and_every_dockerfile_is_there() -> None:
    assert set(SERVICES) == {"redis", "ingress", "gpu_worker", "cpu_worker"}
    for service in SERVICES.values():
        assert service["healthcheck"]["test"][0] == "CMD"
        if "build" in service:
            assert (ROOT / service["build"]["dockerfile"]).is_file()
    assert SERVICES["gpu_worker"]["profiles"] == ["gpu"]
    assert SERVICES["cpu_worker"]["profiles"] == ["cpu"]
    (device,) = SERVICES["gpu_worker"]["deploy"]["resources"]["reservations"]["devices"]
    assert device["capabilities"] == ["gpu"]
    # Room for three ingresses and more on the host.
    for mapping in SERVICES["ingress"]["ports"]:
        first, last = map(int, mapping.split(":")[1].split("-"))
        assert last - first >= 2


def test_no_audio_is_kept_for_a_redis_that_forgets_everything() -> None:
    command = SERVICES["redis"]["command"]
    assert command[command.index("--save") + 1] == ""
    assert command[command.index("--appendonly") + 1] == "no"
    assert SERVICES["ingress"]["environment"]["PARAKEET_REDIS_LOSS_MS"] == "0"


def _program(command: list[str]) -> list[str]:
    if command[0] == "parakeet-server":
        return [sys.executable, "-m", "parakeet.cli", *command[1:]]
    assert command[0] == "valkey-server"
    return [str(find_server()), *command[1:]]


class Containers:
    """The services of compose.yaml as processes around one Redis port."""

    def __init__(self, stack: ExitStack, directory: Path) -> None:
        self._stack = stack
        self._directory = directory
        (self.redis_port,) = free_ports(1)
        self._started = 0

    def environment(self, service: str, changes: dict[str, str]) -> dict[str, str]:
        own = {name: str(value) for name, value in SERVICES[service].get("environment", {}).items()}
        for name, value in own.items():
            own[name] = value.replace("//redis:6379", f"//127.0.0.1:{self.redis_port}")
        inherited = {name: value for name, value in os.environ.items() if not name.startswith("PARAKEET_")}
        return inherited | {"PYTHONPATH": str(ROOT)} | own | changes

    def start(self, service: str, *more: str, **changes: str) -> subprocess.Popen[bytes]:
        """Start a service; `more` goes behind its command, `changes` over its environment."""
        self._started += 1
        log = self._stack.enter_context((self._directory / f"{service}-{self._started}.log").open("wb"))
        process = subprocess.Popen(
            [*_program(SERVICES[service]["command"]), *more],
            cwd=self._directory,
            env=self.environment(service, changes),
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=subprocess.STDOUT,
        )
        self._stack.callback(_end, process)
        return process

    def is_healthy(self, service: str, **changes: str) -> bool:
        """Whether the service's own health check passes."""
        test = SERVICES[service]["healthcheck"]["test"][1:]
        return (
            subprocess.run(
                _program(test),
                env=self.environment(service, changes),
                capture_output=True,
                timeout=60,
                check=False,
            ).returncode
            == 0
        )


def _end(process: subprocess.Popen[bytes]) -> None:
    process.terminate()
    try:
        process.wait(20)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()


@contextmanager
def containers(directory: Path) -> Iterator[Containers]:
    with ExitStack() as stack:
        yield Containers(stack, directory)


@pytest.mark.slow
@pytest.mark.timeout(240)
def test_the_services_find_each_other_and_answer_their_health_checks(tmp_path: Path) -> None:
    with containers(tmp_path) as up:
        up.start("redis", "--port", str(up.redis_port), "--bind", "127.0.0.1")
        assert wait_until_listening("127.0.0.1", up.redis_port, 20.0)
        client = redis.Redis(port=up.redis_port)
        assert client.config_get("maxmemory-policy")["maxmemory-policy"] == "noeviction"
        assert not up.is_healthy("cpu_worker")

        worker = up.start("cpu_worker")
        ports = [free_ports(3) for _ in range(2)]
        names = ("PARAKEET_PORT", "PARAKEET_WS_PORT", "PARAKEET_STATUS_PORT")
        remapped = [dict(zip(names, map(str, trio), strict=True)) for trio in ports]
        for changes in remapped:
            up.start("ingress", **changes)
        for trio in ports:
            for port in trio:
                assert wait_until_listening("127.0.0.1", port, 60.0)
        wait_until(lambda: up.is_healthy("cpu_worker"), 120.0, "the worker is healthy")
        for changes in remapped:
            wait_until(partial(up.is_healthy, "ingress", **changes), 60.0, "the ingress is healthy")
        # Both answer for the same cluster.
        for _, _, status_port in ports:
            assert read_status("127.0.0.1", status_port)["connected_streams"] == 0
        assert client.zcard("px:{0}:ingresses") == 2

        worker.kill()
        worker.wait()
        wait_until(lambda: not up.is_healthy("cpu_worker"), 30.0, "the worker's lease has lapsed")
        client.close()
