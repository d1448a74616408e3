"""The proxies' configurations of deploy/, run by the real nginx and Caddy in front of a real server."""

from __future__ import annotations

import asyncio
import json
import os
import shutil
import ssl
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass
from http.client import HTTPSConnection
from pathlib import Path

import pytest
from websockets.asyncio.client import connect

from tests.certificates import Authority, Certificate
from tests.e2e.serve_process import ServeProcess
from tests.media_files import read_pcm
from tests.ports import HOST, free_ports
from tests.service_process import ROOT
from tests.waiting import wait_until

NGINX = shutil.which("nginx") or shutil.which("nginx", path="/usr/sbin")
CADDY = shutil.which("caddy")
FOLDER = ROOT / "deploy" / "proxy"
RECORDING = ROOT / "parakeet" / "recordings" / "goforward.wav"

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def server() -> Iterator[ServeProcess]:
    flags = ("--backend", "native", "--model-size", "tiny", "--trusted-proxies", HOST)
    with ServeProcess(*flags) as serve:
        serve.wait_until_ready()
        yield serve


@dataclass(frozen=True, slots=True)
class Proxy:
    """A proxy that runs. context: trusts its certificate.   access_log: where it writes what it was asked."""

    port: int
    context: ssl.SSLContext
    access_log: Path


def changed(name: str, *changes: tuple[str, str]) -> str:
    """The text of a configuration, with what is written for a real host replaced."""
    text = (FOLDER / name).read_text()
    for written, here in changes:
        assert text.count(written) == 1, written
        text = text.replace(written, here)
    return text


def start_nginx(server: ServeProcess, folder: Path, files: Certificate, port: int, nobody: int) -> list[str]:
    """Write the configuration; the command that runs it."""
    assert NGINX is not None, "nginx is not installed (Debian: nginx)"
    text = changed(
        "nginx.conf",
        ("listen 443 ssl", f"listen {HOST}:{port} ssl"),
        ("server_name speech.example", "server_name localhost"),
        ("/etc/parakeet/tls.crt", str(files.certificate)),
        ("/etc/parakeet/tls.key", str(files.key)),
        ("127.0.0.1:8000", f"{HOST}:{server.ws_port}"),
        ("127.0.0.1:8001", f"{HOST}:{nobody}"),
        ("/var/log/nginx/parakeet.log", str(folder / "access.log")),
    )
    path = folder / "nginx.conf"
    path.write_text(f"daemon off;\npid {folder}/pid;\n" + text)
    return [NGINX, "-p", str(folder), "-e", str(folder / "error.log"), "-c", str(path)]


def start_caddy(server: ServeProcess, folder: Path, files: Certificate, port: int, nobody: int) -> list[str]:
    """Write the configuration; the command that runs it."""
    assert CADDY is not None, "Caddy is not installed (Debian: caddy)"
    text = changed(
        "Caddyfile",
        ("https://speech.example {", f"https://localhost:{port} {{\n\tbind {HOST}"),
        ("tls /etc/parakeet/tls.crt /etc/parakeet/tls.key", f"tls {files.certificate} {files.key}"),
        ("127.0.0.1:8000 127.0.0.1:8001", f"{HOST}:{nobody} {HOST}:{server.ws_port}"),
        ("/var/log/caddy/parakeet.log", str(folder / "access.log")),
        # Port 80 is for the certificates that it would get by itself.
        ("\tadmin off\n", "\tadmin off\n\tauto_https disable_redirects\n"),
    )
    path = folder / "Caddyfile"
    path.write_text(text)
    return [CADDY, "run", "--config", str(path), "--adapter", "caddyfile"]


@pytest.fixture(params=[start_nginx, start_caddy], ids=["nginx", "caddy"])
def proxy(request: pytest.FixtureRequest, server: ServeProcess, tmp_path: Path) -> Iterator[Proxy]:
    """Each proxy in front of two ingresses, one of which is down."""
    authority = Authority(tmp_path)
    port, nobody = free_ports(2)
    command = request.param(server, tmp_path, authority.sign("localhost"), port, nobody)
    log = tmp_path / "error.log"
    with log.open("ab") as output:
        process = subprocess.Popen(
            command, stdout=output, stderr=output, env={**os.environ, "XDG_DATA_HOME": str(tmp_path)}
        )
    context = ssl.create_default_context(cafile=authority.certificate)
    try:

        def answers() -> bool:
            assert process.poll() is None, log.read_text()
            connection = HTTPSConnection("localhost", port, context=context, timeout=60)
            try:
                connection.request("GET", "/")
                return connection.getresponse().status == 200
            except OSError:
                return False
            finally:
                connection.close()

        wait_until(answers, what=command[0])
        yield Proxy(port, context, tmp_path / "access.log")
    finally:
        process.terminate()
        process.wait()


async def test_a_stream_goes_through_the_proxy(proxy: Proxy) -> None:
    port, context = proxy.port, proxy.context
    rate, pcm = read_pcm(RECORDING)
    async with asyncio.timeout(120), connect(f"wss://localhost:{port}/", ssl=context) as client:
        assert json.loads(await client.recv())["type"] == "hello"
        await client.send(json.dumps({"type": "config", "sample_rate": rate}))
        for at in range(0, len(pcm), 2560):
            await client.send(pcm[at : at + 2560])
        await client.send(json.dumps({"type": "close"}))
        texts = [json.loads(message)["text"] async for message in client]
    assert texts[-1] == "go forward ten meters"
    assert len(texts) > 2
    assert client.close_code == 1000


def test_an_upload_goes_through_the_proxy(proxy: Proxy) -> None:
    port, context = proxy.port, proxy.context
    connection = HTTPSConnection("localhost", port, context=context, timeout=60)
    connection.request("POST", "/v1/listen", RECORDING.read_bytes(), {"Content-Type": "audio/wav"})
    response = connection.getresponse()
    body = response.read()
    connection.close()
    assert response.status == 200, (proxy.access_log.parent / "error.log").read_text()
    answer = json.loads(body)
    assert answer["results"]["channels"][0]["alternatives"][0]["transcript"] == "go forward ten meters"


@pytest.mark.parametrize("proxy", [start_nginx], ids=["nginx"], indirect=True)
def test_a_body_that_is_too_long_ends_at_the_proxy(proxy: Proxy) -> None:
    """Nginx looks at the length that is told; Caddy counts what comes, so that an ingress is asked first."""
    connection = HTTPSConnection("localhost", proxy.port, context=proxy.context, timeout=60)
    connection.putrequest("POST", "/v1/listen")
    connection.putheader("Content-Length", str(102 << 20))
    connection.endheaders()
    connection.send(bytes(1 << 16))
    assert connection.getresponse().status == 413
    connection.close()


def test_no_query_is_logged(proxy: Proxy) -> None:
    connection = HTTPSConnection("localhost", proxy.port, context=proxy.context, timeout=60)
    connection.request("GET", "/v1/models?token=secret-word")
    assert connection.getresponse().status == 200
    connection.close()

    def is_logged() -> bool:
        return proxy.access_log.exists() and "/v1/models" in proxy.access_log.read_text()

    wait_until(is_logged, what="a line of the access log")
    assert "secret-word" not in proxy.access_log.read_text()
