"""The proxy's configuration of deploy/, run by a real nginx in front of a real server."""

from __future__ import annotations

import asyncio
import json
import shutil
import ssl
import subprocess
from collections.abc import Iterator
from http.client import HTTPSConnection
from pathlib import Path

import pytest
from websockets.asyncio.client import connect

from tests.certificates import Authority
from tests.e2e.serve_process import ServeProcess
from tests.media_files import read_pcm
from tests.ports import HOST, free_ports
from tests.service_process import ROOT
from tests.waiting import wait_until

NGINX = shutil.which("nginx") or shutil.which("nginx", path="/usr/sbin")
CONFIGURATION = ROOT / "deploy" / "proxy" / "nginx.conf"
RECORDING = ROOT / "parakeet" / "recordings" / "goforward.wav"

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(NGINX is None, reason="nginx is not installed (Debian: nginx)"),
]


@pytest.fixture(scope="module")
def server() -> Iterator[ServeProcess]:
    flags = ("--backend", "native", "--model-size", "tiny", "--trusted-proxies", HOST)
    with ServeProcess(*flags) as serve:
        serve.wait_until_ready()
        yield serve


@pytest.fixture
def proxy(server: ServeProcess, tmp_path: Path) -> Iterator[tuple[int, ssl.SSLContext]]:
    """A port of nginx, and what trusts its certificate; one of its two ingresses is down."""
    assert NGINX is not None
    authority = Authority(tmp_path)
    files = authority.sign("localhost")
    port, nobody = free_ports(2)
    text = CONFIGURATION.read_text()
    for written, here in (
        ("listen 443 ssl", f"listen {HOST}:{port} ssl"),
        ("server_name speech.example", "server_name localhost"),
        ("/etc/parakeet/tls.crt", str(files.certificate)),
        ("/etc/parakeet/tls.key", str(files.key)),
        ("127.0.0.1:8000", f"{HOST}:{server.ws_port}"),
        ("127.0.0.1:8001", f"{HOST}:{nobody}"),
        ("/var/log/nginx/parakeet.log", str(tmp_path / "access.log")),
    ):
        assert text.count(written) == 1, written
        text = text.replace(written, here)
    changed = tmp_path / "nginx.conf"
    changed.write_text(f"daemon off;\npid {tmp_path}/pid;\n" + text)
    process = subprocess.Popen(
        [NGINX, "-p", str(tmp_path), "-e", str(tmp_path / "error.log"), "-c", str(changed)]
    )
    context = ssl.create_default_context(cafile=authority.certificate)
    try:

        def answers() -> bool:
            assert process.poll() is None, (tmp_path / "error.log").read_text()
            connection = HTTPSConnection("localhost", port, context=context, timeout=5)
            try:
                connection.request("GET", "/")
                return connection.getresponse().status == 200
            except OSError:
                return False
            finally:
                connection.close()

        wait_until(answers, 20.0, "nginx")
        yield port, context
    finally:
        process.terminate()
        process.wait()


async def test_a_stream_goes_through_the_proxy(proxy: tuple[int, ssl.SSLContext]) -> None:
    port, context = proxy
    rate, pcm = read_pcm(RECORDING)
    async with asyncio.timeout(60), connect(f"wss://localhost:{port}/", ssl=context) as client:
        assert json.loads(await client.recv())["type"] == "hello"
        await client.send(json.dumps({"type": "config", "sample_rate": rate}))
        for at in range(0, len(pcm), 2560):
            await client.send(pcm[at : at + 2560])
        await client.send(json.dumps({"type": "close"}))
        texts = [json.loads(message)["text"] async for message in client]
    assert texts[-1] == "go forward ten meters"
    assert len(texts) > 2
    assert client.close_code == 1000


def test_an_upload_goes_through_the_proxy(proxy: tuple[int, ssl.SSLContext]) -> None:
    port, context = proxy
    connection = HTTPSConnection("localhost", port, context=context, timeout=60)
    connection.request("POST", "/v1/listen", RECORDING.read_bytes(), {"Content-Type": "audio/wav"})
    answer = json.loads(connection.getresponse().read())
    connection.close()
    assert answer["results"]["channels"][0]["alternatives"][0]["transcript"] == "go forward ten meters"
