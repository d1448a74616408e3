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

from common.redis.grants import USERS
from common.settings import FLAGS
from parakeet.serve.embedded_redis import find_server
from parakeet.terminal.status import read_status
from tests.ports import free_ports, wait_until_listening
from tests.waiting import wait_until

ROOT = Path(__file__).parents[3]


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


def test_the_files_have_the_shape_that_compose_takes() -> None:
    checked = subprocess.run(
        [
            *(sys.executable, "-m", "check_jsonschema", "--builtin-schema", "vendor.compose-spec"),
            *(str(ROOT / "compose.yaml"), str(ROOT / "deploy" / "compose.tls.yaml")),
        ],
        capture_output=True,
        timeout=120,
        check=False,
    )
    assert checked.returncode == 0, checked.stdout + checked.stderr


def test_every_service_is_watched_and_every_dockerfile_is_there() -> None:
    assert set(SERVICES) == {"setup", "redis", "ingress", "gpu_worker", "cpu_worker"}
    for name, service in SERVICES.items():
        if name != "setup":
            assert service["healthcheck"]["test"][0] in ("CMD", "CMD-SHELL")
        if "build" in service:
            assert (ROOT / service["build"]["dockerfile"]).is_file()
    assert SERVICES["gpu_worker"]["profiles"] == ["gpu"]
    assert SERVICES["cpu_worker"]["profiles"] == ["cpu"]
    (device,) = SERVICES["gpu_worker"]["deploy"]["resources"]["reservations"]["devices"]
    assert device["capabilities"] == ["gpu"]
    # Room for three ingresses and more on the host, which nobody else reaches unless that is asked for.
    for mapping in SERVICES["ingress"]["ports"]:
        address, ports, _ = mapping.split(":")
        first, last = map(int, ports.split("-"))
        assert last - first >= 2
        assert address == "127.0.0.1"


@pytest.mark.parametrize("name", sorted(SERVICES))
def test_every_service_has_the_least_rights_and_a_limit_of_memory(name: str) -> None:
    service = SERVICES[name]
    assert service["user"] == "10001:10001"
    assert service["read_only"] is True
    assert service["cap_drop"] == ["ALL"]
    assert service["security_opt"] == ["no-new-privileges:true"]
    assert service["pids_limit"] > 0
    assert service["mem_limit"]
    for mount in service["volumes"]:
        # The setup writes secrets, and a worker the models that it has fetched.
        assert name == "setup" or mount.endswith(":ro") or mount == "models:/models"


def test_strangers_are_not_served_and_each_process_has_its_own_user_and_secret() -> None:
    ingress, worker = SERVICES["ingress"], SERVICES["cpu_worker"]
    assert ingress["environment"]["PARAKEET_REQUIRE_AUTH"] == "on"
    for service, name in ((ingress, "ingress"), (worker, "worker"), (SERVICES["gpu_worker"], "worker")):
        url = service["environment"]["PARAKEET_REDIS_URL"]
        assert url == f"redis://{USERS[name].user}@redis:6379/0"
        secrets = [mount for mount in service["volumes"] if "/secrets/" in mount]
        assert secrets == [f"{name}_secrets:/secrets/{name}:ro"]
    assert "ports" not in SERVICES["redis"]
    assert COMPOSE["networks"][SERVICES["redis"]["networks"][0]]["internal"] is True


def test_uploads_have_room() -> None:
    (tmpfs,) = SERVICES["ingress"]["tmpfs"]
    (gigabytes,) = re.findall(r"size=(\d+)g", tmpfs)
    largest_mb = int(SERVICES["ingress"]["environment"]["PARAKEET_MAX_UPLOAD_MB"])
    defaults = {flag.name: flag.default for flag in FLAGS}
    assert int(gigabytes) << 10 >= 2 * int(defaults["max_decoders"]) * largest_mb
    decoders_mb = int(defaults["max_decoders"]) * int(defaults["max_decoder_mb"])
    memory_mb = int(SERVICES["ingress"]["mem_limit"].removesuffix("g")) << 10
    assert memory_mb >= (int(gigabytes) << 10) + decoders_mb + 512


def test_nothing_is_kept_for_a_redis_that_forgets_everything() -> None:
    command = SERVICES["redis"]["command"]
    assert command[command.index("--save") + 1] == ""
    assert command[command.index("--appendonly") + 1] == "no"
    for name in ("ingress", "gpu_worker", "cpu_worker"):
        assert SERVICES[name]["environment"]["PARAKEET_REDIS_LOSS_MS"] == "0"


def _program(command: list[str]) -> list[str]:
    if command[0] == "parakeet-server":
        return [sys.executable, "-m", "parakeet.cli", *command[1:]]
    if command[0] == "python":
        return [sys.executable, *command[1:]]
    assert command[0] == "valkey-server"
    return [str(find_server()), *command[1:]]


class Containers:
    """The services of compose.yaml as processes around one Redis port, with their secrets in a folder."""

    def __init__(self, stack: ExitStack, directory: Path) -> None:
        self._stack = stack
        self._directory = directory
        (self.redis_port,) = free_ports(1)
        self._started = 0

    def _here(self, text: str) -> str:
        """What stands for a place of a container."""
        text = text.replace("@redis:6379", f"@127.0.0.1:{self.redis_port}")
        return text.replace("/secrets/", f"{self._directory}/secrets/")

    def environment(self, service: str, changes: dict[str, str]) -> dict[str, str]:
        own = {name: str(value) for name, value in SERVICES[service].get("environment", {}).items()}
        own = {name: self._here(value) for name, value in own.items()}
        inherited = {name: value for name, value in os.environ.items() if not name.startswith("PARAKEET_")}
        return inherited | {"PYTHONPATH": str(ROOT)} | own | changes

    def set_up(self) -> str:
        """Make the secrets as the service `setup` does; the client's key that it prints."""
        (shell, flags, script) = SERVICES["setup"]["command"]
        script = script.replace("parakeet-server", f"{sys.executable} -m parakeet.cli")
        script = script.replace("/secrets", f"{self._directory}/secrets")
        done = subprocess.run(
            [shell, flags, script],
            env=self.environment("setup", {}),
            capture_output=True,
            text=True,
            timeout=120,
            check=True,
        )
        return done.stdout.strip()

    def start(self, service: str, *more: str, **changes: str) -> subprocess.Popen[bytes]:
        """Start a service; `more` goes behind its command, `changes` over its environment."""
        self._started += 1
        log = self._stack.enter_context((self._directory / f"{service}-{self._started}.log").open("wb"))
        command = [self._here(word) for word in SERVICES[service]["command"]]
        process = subprocess.Popen(
            [*_program(command), *more],
            cwd=self._directory,
            env=self.environment(service, changes),
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=subprocess.STDOUT,
        )
        self._stack.callback(_end, process)
        return process

    def is_healthy(self, service: str, metrics_port: int) -> bool:
        """Whether the service's own health check passes."""
        test = [
            word.replace(":9090/", f":{metrics_port}/") for word in SERVICES[service]["healthcheck"]["test"]
        ]
        run = subprocess.run(_program(test[1:]), capture_output=True, timeout=120, check=False)
        return run.returncode == 0

    def client(self, user: str) -> redis.Redis:
        """A client of Redis for a user."""
        password = (self._directory / "secrets" / user / "redis-password").read_text().strip()
        return redis.Redis(port=self.redis_port, username=f"parakeet-{user}", password=password)


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
def test_the_services_find_each_other_and_answer_their_health_checks(tmp_path: Path) -> None:
    with containers(tmp_path) as up:
        key = up.set_up()
        assert key.startswith("pk_")
        assert up.set_up() == "", "a second start makes no second key"
        up.start("redis", "--port", str(up.redis_port), "--bind", "127.0.0.1")
        assert wait_until_listening("127.0.0.1", up.redis_port, 120.0)
        reader = up.client("reader")
        assert reader.info("memory")["maxmemory_policy"] == "noeviction"

        (worker_metrics,) = free_ports(1)
        assert not up.is_healthy("cpu_worker", worker_metrics)
        worker = up.start("cpu_worker", PARAKEET_METRICS_PORT=str(worker_metrics))
        ports = [free_ports(4) for _ in range(2)]
        names = ("PARAKEET_PORT", "PARAKEET_WS_PORT", "PARAKEET_STATUS_PORT", "PARAKEET_METRICS_PORT")
        for four in ports:
            up.start("ingress", **dict(zip(names, map(str, four), strict=True)))
        for four in ports:
            for port in four:
                assert wait_until_listening("127.0.0.1", port, 120.0)
        wait_until(lambda: up.is_healthy("cpu_worker", worker_metrics), 120.0, "the worker is healthy")
        for _, _, status_port, metrics_port in ports:
            wait_until(partial(up.is_healthy, "ingress", metrics_port), 120.0, "the ingress is healthy")
            # Both answer for the same cluster.
            assert read_status("127.0.0.1", status_port)["connected_streams"] == 0
        ingress = up.client("ingress")
        assert ingress.zcard("px:{0}:ingresses") == 2
        worker.kill()
        worker.wait()
        assert not up.is_healthy("cpu_worker", worker_metrics)
        keeper = up.client("keeper")
        # redis-py tells its name, which is not allowed and no matter.
        assert {row["object"] for row in keeper.acl_log()} <= {"client|setinfo"}
        for client in (reader, ingress, keeper):
            client.close()
