"""A port's certificate follows its files, and a wrong file never takes the port down."""

from __future__ import annotations

import asyncio
import ssl
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest

from common.errors import SettingsError
from common.process.certificates import ServerTls, ServerTlsFiles
from tests.certificates import Authority, Certificate

DAY_S = 86_400


def put(target: Certificate, source: Certificate) -> None:
    """Replace the files of a certificate by those of another."""
    target.certificate.write_bytes(source.certificate.read_bytes())
    target.key.write_bytes(source.key.read_bytes())


@asynccontextmanager
async def listening(tls: ServerTls) -> AsyncIterator[int]:
    """Serve one byte to whoever connects; yield the port."""

    async def greet(_: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(b"!")
        writer.close()

    server = await asyncio.start_server(greet, "127.0.0.1", 0, ssl=tls.context)
    async with server:
        yield server.sockets[0].getsockname()[1]


async def serial_served(port: int, authority: Authority, client: Certificate | None = None) -> int:
    """Connect as a client that checks everything; return the serial number of the server's certificate."""
    context = ssl.create_default_context(cafile=authority.certificate)
    if client is not None:
        context.load_cert_chain(client.certificate, client.key)
    reader, writer = await asyncio.open_connection(
        "127.0.0.1", port, ssl=context, server_hostname="localhost"
    )
    try:
        if await reader.read(1) != b"!":
            raise ConnectionError("the server hung up")
        served = writer.get_extra_info("peercert")
        return int(served["serialNumber"], 16)
    finally:
        writer.close()


async def test_a_renewed_certificate_is_served_without_a_restart(tmp_path: Path) -> None:
    authority = Authority(tmp_path)
    live = authority.sign(days=3)
    tls = ServerTls(ServerTlsFiles(live.certificate, live.key))
    assert tls.expires_s - time.time() == pytest.approx(3 * DAY_S, abs=60)
    async with listening(tls) as port:
        before = await serial_served(port, authority)
        assert not tls.reload()
        put(live, authority.sign(days=9))
        assert tls.reload()
        assert await serial_served(port, authority) != before
    assert tls.expires_s - time.time() == pytest.approx(9 * DAY_S, abs=60)


@pytest.mark.parametrize("wrong", ["another's key", "half a file", "no file"])
async def test_wrong_files_leave_the_certificate_as_it_was(
    tmp_path: Path, wrong: str, caplog: pytest.LogCaptureFixture
) -> None:
    authority = Authority(tmp_path)
    live = authority.sign()
    tls = ServerTls(ServerTlsFiles(live.certificate, live.key))
    async with listening(tls) as port:
        before = await serial_served(port, authority)
        if wrong == "another's key":
            live.key.write_bytes(authority.sign().key.read_bytes())
        elif wrong == "half a file":
            live.certificate.write_bytes(live.certificate.read_bytes()[:200])
        else:
            live.certificate.unlink()
        assert not tls.reload()
        assert "stays as it was" in caplog.text
        assert await serial_served(port, authority) == before
        put(live, authority.sign())
        assert tls.reload()
        assert await serial_served(port, authority) != before


async def test_clients_without_a_certificate_are_refused_where_one_is_asked_for(tmp_path: Path) -> None:
    authority = Authority(tmp_path)
    live, client = authority.sign(), authority.sign("client")
    tls = ServerTls(ServerTlsFiles(live.certificate, live.key, authority.certificate))
    async with listening(tls) as port:
        assert await serial_served(port, authority, client)
        with pytest.raises((ssl.SSLError, ConnectionError)):
            await serial_served(port, authority)


@pytest.mark.parametrize(
    ("files", "sentence"),
    [
        (("cert", "other"), "is not the key of"),
        (("cert", "none"), "cannot be read: No such file"),
        (("none", "key"), "cannot be read: No such file"),
        (("text", "key"), "cannot be read as PEM"),
    ],
)
def test_what_is_no_certificate_and_key_is_refused_at_the_start(
    tmp_path: Path, files: tuple[str, str], sentence: str
) -> None:
    authority = Authority(tmp_path)
    live = authority.sign()
    text = tmp_path / "text"
    text.write_text("hello")
    paths = {
        "cert": live.certificate,
        "key": live.key,
        "other": authority.sign().key,
        "none": tmp_path / "none",
        "text": text,
    }
    with pytest.raises(SettingsError, match=sentence):
        ServerTls(ServerTlsFiles(paths[files[0]], paths[files[1]]))
