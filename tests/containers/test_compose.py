"""compose.yaml for real: its images are built, and it runs with three ingresses and two workers."""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any, Final
from urllib.error import HTTPError
from urllib.request import Request, urlopen

import pytest

from parakeet.client import ServerError, connect, transcribe
from parakeet.terminal.status import read_status
from tests.certificates import Authority
from tests.containers import images
from tests.containers.engine import Compose, Engine, engine
from tests.media_files import read_pcm
from tests.paced_streams import PacedStreams, texts_of
from tests.service_process import ROOT
from tests.waiting import wait_until

pytestmark = [pytest.mark.containers, pytest.mark.timeout(900)]

RECORDING: Final = ROOT / "parakeet" / "recordings" / "goforward.wav"
TEXT: Final = "go forward ten meters"
PCM: Final = read_pcm(RECORDING)[1]
# A loopback address of its own, so that the ports are free whatever else runs here.
_HOST: Final = "127.77.0.1"
_PROJECT: Final = "parakeet-test"
_SCALE: Final = ("--scale", "ingress=3", "--scale", "cpu_worker=2")
_ENVIRONMENT: Final = {
    "BIND": _HOST,
    "OPS_BIND": _HOST,
    "WORKER_MEMORY": "4g",
    # Streams are still running when it is over, and have to be handed over.
    "DRAIN_TIMEOUT_S": "2",
    "INGRESS_IMAGE": "parakeet-test-ingress",
    "CPU_WORKER_IMAGE": "parakeet-test-worker",
}


class Service:
    """The containers of compose.yaml."""

    def __init__(self, engine: Engine, compose: Compose) -> None:
        self.engine = engine
        self.compose = compose
        self.key = ""

    def up(self) -> None:
        """Start what is missing, and wait until all of it is healthy."""
        self.compose("up", "--detach", "--no-build", "--no-recreate", *_SCALE)
        wait_until(self._is_healthy, 300.0, "healthy containers")

    def _is_healthy(self) -> bool:
        services = ("redis", "ingress", "cpu_worker")
        names = [name for service in services for name in self.compose.containers(service)]
        states = [self.inspect(name)["State"] for name in names]
        for name, state in zip(names, states, strict=True):
            assert state["Running"], self.engine.docker("logs", "--tail", "50", name)
        return len(states) == 6 and all(state["Health"]["Status"] == "healthy" for state in states)

    def inspect(self, container: str) -> Any:
        return json.loads(self.engine.docker("inspect", container))[0]

    def port(self, container: str, port: int) -> int:
        """The port of this machine at which a container's port is."""
        return int(self.engine.docker("port", container, f"{port}/tcp").split()[0].rpartition(":")[2])

    @property
    def urls(self) -> list[str]:
        """Where clients connect."""
        return [f"ws://{_HOST}:{self.port(one, 8000)}" for one in self.compose.containers("ingress")]

    @property
    def all_urls(self) -> list[str]:
        """And where they may later, since a new container has any port of the range."""
        every = (f"ws://{_HOST}:{port}" for port in range(8000, 8010))
        return list(dict.fromkeys((*self.urls, *every)))

    def stop(self, container: str) -> None:
        """End a container as an upgrade does: SIGTERM, the grace of compose.yaml, and away with it."""
        self.engine.docker("stop", "--time", "60", container, timeout_s=90)
        assert self.inspect(container)["State"]["ExitCode"] == 0
        self.engine.docker("rm", container)


@pytest.fixture(scope="module")
def service() -> Iterator[Service]:
    with engine() as running:
        compose = Compose(running, _PROJECT, [ROOT / "compose.yaml"], _ENVIRONMENT)
        made = Service(running, compose)
        compose("down", "--volumes", "--timeout", "5")
        images.prepare_bases(running)
        images.build(running, _ENVIRONMENT["INGRESS_IMAGE"], _ENVIRONMENT["CPU_WORKER_IMAGE"])
        try:
            made.up()
            made.key = compose(
                *("run", "--rm", "-T", "setup", "parakeet-server", "keys", "create"),
                *("--auth-keys-file", "/secrets/ingress/keys.json", "--name", "test"),
            ).strip()
            yield made
        finally:
            compose("down", "--volumes", "--timeout", "5")


async def test_every_ingress_gives_the_text_to_whoever_has_a_key(service: Service) -> None:
    urls = service.urls
    assert len(urls) == 3
    for url in urls:
        # The file is read again within seconds.
        wait_until(partial(_takes, url, service.key), 60.0, "an ingress with the new key")
        assert (await transcribe(url, RECORDING, api_key=service.key)).text == TEXT
        with pytest.raises(ServerError, match="unauthorized"):
            await connect(url)


def _takes(url: str, key: str) -> bool:
    request = Request(f"http{url.removeprefix('ws')}/v1/models", headers={"Authorization": f"Bearer {key}"})
    try:
        with urlopen(request, timeout=10) as answer:
            return bool(answer.status == 200)
    except HTTPError as error:
        if error.code != 401:
            raise
        time.sleep(2.0)  # each try counts as a wrong key, of which an address may send few
        return False


def test_the_first_key_is_in_the_log_of_the_setup(service: Service) -> None:
    assert "pk_" in service.compose("logs", "--no-color", "setup")


def test_nobody_has_rights_that_he_does_not_need(service: Service) -> None:
    for name in ("redis", "ingress", "cpu_worker"):
        container = service.compose.containers(name)[0]
        host = service.inspect(container)["HostConfig"]
        assert host["ReadonlyRootfs"]
        assert host["CapDrop"] == ["ALL"]
        assert host["SecurityOpt"] == ["no-new-privileges:true"]
        assert host["Memory"] > 0
        assert host["PidsLimit"] == 512
        status = service.engine.docker("exec", container, "cat", "/proc/1/status")
        assert "\nUid:\t10001\t10001\t" in status
        assert "\nCapEff:\t0000000000000000\n" in status
        with pytest.raises(AssertionError, match="Read-only file system"):
            service.engine.docker("exec", container, "touch", "/etc/x")


def test_status_metrics_and_redis_are_there_for_operators(service: Service) -> None:
    for container in service.compose.containers("ingress"):
        assert read_status(_HOST, service.port(container, 8050))["connected_streams"] >= 0
        for path, says in (("metrics", b"parakeet_ingress_connections"), ("livez", b""), ("readyz", b"")):
            with urlopen(f"http://{_HOST}:{service.port(container, 9090)}/{path}", timeout=10) as answer:
                assert answer.status == 200
                assert says in answer.read()
    for container in service.compose.containers("cpu_worker"):
        with urlopen(f"http://{_HOST}:{service.port(container, 9090)}/metrics", timeout=10) as answer:
            assert b"parakeet_worker_slots 100" in answer.read()
    assert "db0:keys=" in _redis_cli(service, "reader", "INFO", "keyspace")
    assert _redis_cli(service, "keeper", "ACL", "LOG").strip() == "", "nothing was denied"
    assert "NOPERM" in _redis_cli(service, "reader", "KEYS", "*")
    assert _redis_cli(service, "keeper", "ACL", "LOAD").strip() == "OK"


def _redis_cli(service: Service, user: str, *command: str) -> str:
    (redis,) = service.compose.containers("redis")
    typed = " ".join(f"'{word}'" for word in command)
    return service.engine.docker(
        *("exec", redis, "sh", "-c"),
        f'REDISCLI_AUTH="$(cat /secrets/{user}/redis-password)" valkey-cli --user parakeet-{user}'
        f" --no-auth-warning {typed} 2>&1",
    )


async def test_no_word_is_lost_when_containers_are_killed_and_replaced(service: Service) -> None:
    """A worker, then an ingress, by SIGKILL; then all of both, one after the other, as an upgrade does."""
    async with PacedStreams(service.all_urls, PCM, 6, service.key) as streams:
        for name in ("cpu_worker", "ingress"):
            killed = service.compose.containers(name)[0]
            await asyncio.to_thread(service.engine.docker, "kill", killed)
            await streams.go_on()
            await asyncio.to_thread(service.engine.docker, "rm", killed)
            await asyncio.to_thread(service.up)
        for name in ("cpu_worker", "ingress"):
            for container in service.compose.containers(name):
                await asyncio.to_thread(service.stop, container)
                await asyncio.to_thread(service.up)
                await streams.go_on()
        heard = await streams.finish()
    expected = await texts_of(service.urls, PCM, heard, service.key)
    assert [one.text for one in heard] == expected
    assert all(TEXT in one.text for one in heard)
    assert sum(one.num_resumptions for one in heard) >= 6


async def test_the_client_ports_speak_tls_where_that_is_asked_for(
    service: Service, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    authority = Authority(tmp_path)
    subject = authority.sign("speech.example", addresses=(_HOST,))
    monkeypatch.setenv("SSL_CERT_FILE", str(authority.certificate))
    files = [ROOT / "compose.yaml", ROOT / "deploy" / "compose.tls.yaml"]
    environment = {**_ENVIRONMENT, "TLS_CERT": str(subject.certificate), "TLS_KEY": str(subject.key)}
    compose = Compose(service.engine, _PROJECT, files, environment)
    compose("up", "--detach", "--no-build", "--no-deps", "--scale", "ingress=1", "ingress")
    (container,) = service.compose.containers("ingress")
    wait_until(
        lambda: service.inspect(container)["State"]["Health"]["Status"] == "healthy", 120.0, "the ingress"
    )
    url = f"wss://{_HOST}:{service.port(container, 8000)}"
    assert (await transcribe(url, RECORDING, api_key=service.key)).text == TEXT
