"""A Redis that speaks TLS only, with an authority of its own and certificates for its clients.

Debian's redis-server alone: the embedded Valkey is built without TLS.
"""

from __future__ import annotations

import shutil
import subprocess
import sys
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import pytest
import redis

from common.errors import UnfitRedis
from common.redis.address import parse_address
from common.redis.grants import SERVE
from common.redis.requirements import check_servers
from tests.certificates import Authority, Certificate
from tests.ports import HOST, free_ports
from tests.stack import Stack, transcribe
from tests.stream_client import expected_text, noise
from tests.waiting import wait_until

SERVER = shutil.which("redis-server")
_NAME = "speech-redis.internal"
_MASTER = "parakeet"

pytestmark = pytest.mark.needs_program("redis-server")


class TlsServers:
    """An authority, and servers that ask their clients for its certificates."""

    def __init__(self, folder: Path, stack: ExitStack) -> None:
        self.folder = folder
        self.authority = Authority(folder)
        self.own = self.authority.sign("client")
        self._stack = stack

    def client(self, port: int) -> Any:
        """A plain client for looking at keys. It checks no name."""
        return redis.Redis(
            HOST,
            port,
            ssl=True,
            ssl_ca_certs=str(self.authority.certificate),
            ssl_certfile=str(self.own.certificate),
            ssl_keyfile=str(self.own.key),
            ssl_check_hostname=False,
            socket_timeout=60,
        )

    def start(self, files: Certificate) -> int:
        """Start a server that shows this certificate; its port."""
        (port,) = free_ports(1)
        self._start(port, "--save", "", *self._options(port, files))
        return port

    def start_sentinel(self, files: Certificate, master_port: int) -> int:
        """Start a Sentinel that watches a master; its port."""
        (port,) = free_ports(1)
        options = self._options(port, files)
        lines = [f"{name[2:]} {value}" for name, value in zip(options[::2], options[1::2], strict=True)]
        lines.append(f"sentinel monitor {_MASTER} {HOST} {master_port} 1")
        configuration = self.folder / "sentinel.conf"
        configuration.write_text("\n".join(lines) + "\n")
        self._start(port, "--sentinel", configuration=configuration)
        return port

    def _options(self, port: int, files: Certificate) -> tuple[str, ...]:
        return (
            *("--port", "0", "--tls-port", str(port), "--bind", HOST, "--dir", str(self.folder)),
            *("--tls-cert-file", str(files.certificate), "--tls-key-file", str(files.key)),
            *("--tls-ca-cert-file", str(self.authority.certificate), "--tls-auth-clients", "yes"),
            *("--tls-replication", "yes"),
        )

    def _start(self, port: int, *arguments: str, configuration: Path | None = None) -> None:
        assert SERVER is not None, "redis-server is not installed"
        first = () if configuration is None else (str(configuration),)
        process = subprocess.Popen([SERVER, *first, *arguments], stdout=subprocess.DEVNULL)
        self._stack.callback(process.wait)
        self._stack.callback(process.kill)

        def answers() -> bool:
            try:
                return bool(self.client(port).ping())
            except redis.ConnectionError:
                return False

        wait_until(answers, what=f"a server on port {port}")

    @contextmanager
    def service(self, port: int, url: str) -> Iterator[Stack]:
        """Processes that reach Redis at `url`."""
        stack = Stack(url, self.folder, self.client(port))
        try:
            yield stack
        finally:
            stack.close()


@pytest.fixture
def servers(tmp_path: Path) -> Iterator[TlsServers]:
    with ExitStack() as stack:
        yield TlsServers(tmp_path, stack)


def url(port: int, authority: Authority, client: Certificate | None) -> str:
    own = "" if client is None else f"&cert={client.certificate}&key={client.key}"
    return f"rediss://{HOST}:{port}/0?ca={authority.certificate}{own}"


async def check_a_stream(stack: Stack, **flags: Any) -> None:
    """Both kinds of process, with all of their connections to Redis."""
    stack.worker(**flags)
    ingress = stack.ingress(**flags)
    pcm = noise(2.0)
    assert (await transcribe(ingress.ws_url, pcm))[-1].text == expected_text(pcm)


async def test_a_stream_goes_through_a_redis_with_tls(servers: TlsServers) -> None:
    port = servers.start(servers.authority.sign("localhost"))
    with servers.service(port, url(port, servers.authority, servers.own)) as stack:
        await check_a_stream(stack)


async def test_the_flags_name_files_and_the_servers_name(servers: TlsServers) -> None:
    port = servers.start(servers.authority.sign(_NAME, addresses=()))
    with servers.service(port, f"rediss://{HOST}:{port}/0") as stack:
        await check_a_stream(
            stack,
            redis_tls_ca=servers.authority.certificate,
            redis_tls_cert=servers.own.certificate,
            redis_tls_key=servers.own.key,
            redis_tls_server_name=_NAME,
        )


async def test_a_stream_goes_through_a_master_that_sentinels_with_tls_know(servers: TlsServers) -> None:
    """A Sentinel tells the master's IP address, for which a certificate hardly ever is."""
    files = servers.authority.sign(_NAME, addresses=())
    port = servers.start(files)
    sentinel = servers.start_sentinel(files, port)
    options = url(sentinel, servers.authority, servers.own).partition("?")[2]
    address = f"rediss+sentinel://{HOST}:{sentinel}/{_MASTER}?{options}&name={_NAME}"
    with servers.service(port, address) as stack:
        await check_a_stream(stack)


def test_a_certificate_for_another_name_is_refused(servers: TlsServers) -> None:
    port = servers.start(servers.authority.sign(_NAME, addresses=()))
    address = url(port, servers.authority, servers.own)
    for wrong in (address, f"{address}&name=other.internal"):
        with pytest.raises(UnfitRedis, match=rf"Redis at {HOST}:{port}/0 cannot be spoken to over TLS: .*"):
            check_servers((parse_address(wrong),), 30.0, SERVE)
    check_servers((parse_address(f"{address}&name={_NAME}"),), 30.0, SERVE)


def test_a_client_without_a_certificate_or_with_a_wrong_authority_is_told(
    servers: TlsServers, tmp_path: Path
) -> None:
    port = servers.start(servers.authority.sign("localhost"))
    other = Authority(tmp_path, "other")
    for address in (url(port, servers.authority, None), url(port, other, servers.own)):
        run = subprocess.run(
            [sys.executable, "-m", "parakeet.cli", "ingress", "--redis-url", address, "--status-port", "0"],
            capture_output=True,
            text=True,
            timeout=120,
        )
        assert run.returncode != 0
        assert "Traceback" not in run.stdout + run.stderr
        assert "TLS" in run.stdout + run.stderr
