"""Which addresses an ingress listens on, which sockets it lets in, what it asks of the kernel about them."""

from __future__ import annotations

import asyncio
import logging
import socket
from contextlib import suppress

import pytest

from common.addresses import host_and_port
from ingress.sockets.gate import Gate
from ingress.sockets.listening import listening_sockets
from tests.fake_backplane import ScriptedBackplane
from tests.ingress_harness import serving, wait_until
from tests.ports import HOST, free_ports


async def _reaches(host: str, address: str) -> bool:
    """Whether a client that connects to `address` reaches a server on `host`."""
    (port,) = free_ports(1)
    accepted = asyncio.Event()
    loop = asyncio.get_running_loop()

    class _Server(asyncio.Protocol):
        def connection_made(self, transport: asyncio.BaseTransport) -> None:
            accepted.set()
            transport.close()

    servers = [
        await loop.create_server(_Server, sock=listener) for listener in await listening_sockets(host, port)
    ]
    try:
        _, writer = await asyncio.open_connection(address, port)
        async with asyncio.timeout(5):
            await accepted.wait()
        writer.close()
        await writer.wait_closed()
    except ConnectionRefusedError:
        return False
    finally:
        for server in servers:
            server.close()
    return True


@pytest.mark.parametrize(
    ("host", "address"),
    [
        ("::", "::1"),
        ("::", "127.0.0.1"),
        ("[::]", "127.0.0.1"),
        ("::1", "::1"),
        ("[::1]", "::1"),
        ("0.0.0.0", "127.0.0.1"),
        ("localhost", "127.0.0.1"),
    ],
)
async def test_a_host_is_reached_at_its_addresses(host: str, address: str) -> None:
    assert await _reaches(host, address)


async def test_an_address_of_one_family_is_not_reached_by_the_other() -> None:
    assert not await _reaches("::1", "127.0.0.1")


@pytest.mark.parametrize("host", ["a..b", "x" * 70, "no-such-host.invalid"])
async def test_a_host_that_is_not_there_is_one_sentence(host: str) -> None:
    with pytest.raises(OSError, match=f"there is no host '{host}' to listen on"):
        await listening_sockets(host, 1)


async def test_a_port_that_is_taken_is_named() -> None:
    with socket.create_server(("127.0.0.1", 0)) as other:
        port = other.getsockname()[1]
        with pytest.raises(OSError, match=f"cannot listen on 127.0.0.1:{port}: .*Address already in use"):
            await listening_sockets("127.0.0.1", port)


def test_an_address_is_written_so_that_its_port_can_be_told() -> None:
    assert host_and_port("::1", 80) == "[::1]:80"
    assert host_and_port("[::1]", 80) == "[::1]:80"
    assert host_and_port("127.0.0.1", 80) == "127.0.0.1:80"


async def test_running_out_of_files_is_logged_and_said_once_for_many(
    caplog: pytest.LogCaptureFixture,
) -> None:
    async with serving(ScriptedBackplane(), max_files=1) as harness:
        for port in (harness.tcp_port, harness.ws_port, harness.status_port):
            reader, writer = await asyncio.open_connection(HOST, port)
            with suppress(ConnectionResetError):
                assert await reader.read() == b""
            writer.close()
            with suppress(ConnectionResetError):
                await writer.wait_closed()
        assert not harness.connections
    (record,) = [record for record in caplog.records if record.name == "ingress.sockets.gate"]
    assert record.levelno == logging.ERROR
    assert record.getMessage() == (
        "out of file descriptors: 1 connections refused; the limit of open files is 1"
    )


def test_a_gate_with_few_files_keeps_a_quarter() -> None:
    class _Transport(asyncio.Transport):
        def get_extra_info(self, name: str, default: object = None) -> socket.socket:
            return accepted

    with socket.socket() as accepted:
        number = accepted.fileno()
        assert Gate(lambda: 2 * number + 64).lets_in(_Transport())
        assert not Gate(lambda: number).lets_in(_Transport())


async def test_a_client_whose_machine_is_gone_is_noticed_by_the_kernel() -> None:
    async with serving(ScriptedBackplane()) as harness:
        clients = [await harness.tcp(), await harness.raw_ws()]
        await wait_until(lambda: len(harness.transports) == 2)
        for transport in harness.transports:
            accepted = transport.get_extra_info("socket")
            assert accepted.getsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE) == 1
            tcp = {
                name: accepted.getsockopt(socket.IPPROTO_TCP, getattr(socket, name))
                for name in ("TCP_KEEPIDLE", "TCP_KEEPINTVL", "TCP_KEEPCNT", "TCP_USER_TIMEOUT")
            }
            assert tcp == {
                "TCP_KEEPIDLE": 60,
                "TCP_KEEPINTVL": 15,
                "TCP_KEEPCNT": 4,
                "TCP_USER_TIMEOUT": 120_000,
            }
        for client in clients:
            await client.close()
