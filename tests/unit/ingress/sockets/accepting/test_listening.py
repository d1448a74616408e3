"""Which addresses an ingress listens on, which sockets it lets in, what it asks of the kernel about them."""

from __future__ import annotations

import asyncio
import socket

import pytest

from common.addresses import host_and_port
from ingress.sockets.acceptor import listening_sockets
from tests.fake_backplane import ScriptedBackplane
from tests.ingress_harness import serving, wait_until
from tests.ports import free_ports


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
        async with asyncio.timeout(60):
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
