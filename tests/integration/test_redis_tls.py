"""A Redis that speaks TLS only, with an authority of its own and certificates for its clients."""

from __future__ import annotations

import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import redis

from tests.certificates import Authority, Certificate
from tests.ports import HOST, free_ports
from tests.stack import Stack, transcribe
from tests.stream_client import expected_text, noise

SERVER = shutil.which("redis-server")


@pytest.fixture
def authority(tmp_path: Path) -> Authority:
    return Authority(tmp_path)


@pytest.fixture
def port(tmp_path: Path, authority: Authority) -> Iterator[int]:
    """A server that asks its clients for certificates."""
    if SERVER is None:
        pytest.skip("redis-server is not installed")
    (port,) = free_ports(1)
    files = authority.sign("localhost")
    process = subprocess.Popen(
        [
            *(SERVER, "--port", "0", "--tls-port", str(port), "--bind", HOST, "--save", ""),
            *("--tls-cert-file", str(files.certificate), "--tls-key-file", str(files.key)),
            *("--tls-ca-cert-file", str(authority.certificate), "--tls-auth-clients", "yes"),
            *("--dir", str(tmp_path)),
        ],
        stdout=subprocess.DEVNULL,
    )
    try:
        yield port
    finally:
        process.kill()
        process.wait()


def url(port: int, authority: Authority, client: Certificate | None) -> str:
    own = "" if client is None else f"&cert={client.certificate}&key={client.key}"
    return f"rediss://{HOST}:{port}/0?ca={authority.certificate}{own}"


async def test_a_stream_goes_through_a_redis_with_tls(
    port: int, authority: Authority, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    own = authority.sign("client")
    address = url(port, authority, own)

    def raw_client(_: str) -> redis.Redis:
        return redis.Redis(
            HOST,
            port,
            ssl=True,
            ssl_ca_certs=str(authority.certificate),
            ssl_certfile=str(own.certificate),
            ssl_keyfile=str(own.key),
        )

    monkeypatch.setattr("tests.stack.raw_client", raw_client)
    stack = Stack(address, tmp_path)
    try:
        stack.worker()
        ingress = stack.ingress()
        pcm = noise(2.0)
        assert (await transcribe(ingress.ws_url, pcm))[-1].text == expected_text(pcm)
    finally:
        stack.close()


def test_a_client_without_a_certificate_or_with_a_wrong_authority_is_told(
    port: int, authority: Authority, tmp_path: Path
) -> None:
    other = Authority(tmp_path, "other")
    for address in (url(port, authority, None), url(port, other, authority.sign("client"))):
        run = subprocess.run(
            [sys.executable, "-m", "parakeet.cli", "ingress", "--redis-url", address, "--status-port", "0"],
            capture_output=True,
            text=True,
            timeout=60,
        )
        assert run.returncode != 0
        assert "Traceback" not in run.stdout + run.stderr
        assert "TLS" in run.stdout + run.stderr
