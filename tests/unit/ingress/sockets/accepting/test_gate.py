"""Which sockets are let in."""

from __future__ import annotations

import asyncio
import logging
import socket
from contextlib import suppress
from ipaddress import ip_network

import pytest
from websockets.asyncio.client import connect
from websockets.exceptions import InvalidStatus

from ingress.auth.proxies import TrustedProxies
from ingress.sockets.gate import Full, Gate, Place
from tests.fake_backplane import ScriptedBackplane
from tests.ingress_harness import HOST, serving, wait_until


class _Transport(asyncio.Transport):
    """A socket from some address."""

    def __init__(self, address: str, accepted: socket.socket | None = None) -> None:
        super().__init__({"peername": (address, 4711), "socket": accepted})


def _enter(gate: Gate, address: str) -> Place | Full:
    return gate.enter(_Transport(address))


def _many() -> int:
    return 100_000


def test_so_many_connections_and_no_more() -> None:
    gate = Gate(_many, 2)
    places = [_enter(gate, "192.0.2.1"), _enter(gate, "192.0.2.1")]
    assert _enter(gate, "192.0.2.2") is Full.CONNECTIONS
    assert gate.num_open == 2
    first = places[0]
    assert isinstance(first, Place)
    first.leave()
    assert isinstance(_enter(gate, "192.0.2.2"), Place)


def test_so_many_connections_of_one_address() -> None:
    gate = Gate(_many, None, 2)
    first = _enter(gate, "192.0.2.1")
    assert isinstance(first, Place)
    assert isinstance(_enter(gate, "::ffff:192.0.2.1"), Place)
    assert _enter(gate, "192.0.2.1") is Full.ADDRESS
    assert isinstance(_enter(gate, "192.0.2.2"), Place)
    first.leave()
    assert isinstance(_enter(gate, "192.0.2.1"), Place)
    assert gate.num_open == 3


def test_what_is_refused_is_counted_by_its_reason() -> None:
    gate = Gate(_many, 2, 1)
    _enter(gate, "192.0.2.1")
    for _ in range(3):
        assert _enter(gate, "192.0.2.1") is Full.ADDRESS
    _enter(gate, "192.0.2.2")
    assert _enter(gate, "192.0.2.3") is Full.CONNECTIONS
    assert gate.num_refused == {"files": 0, "connections": 1, "address": 3}


def test_requests_of_a_proxys_connection_count_until_they_are_answered() -> None:
    gate = Gate(_many, None, 1, TrustedProxies([ip_network("10.0.0.0/8")]))
    place, other = _enter(gate, "10.0.0.1"), _enter(gate, "10.0.0.1")
    assert isinstance(place, Place)
    assert isinstance(other, Place)
    assert place.serve("192.0.2.1") is None
    assert other.serve("192.0.2.1") is Full.ADDRESS
    assert other.serve("192.0.2.2") is None
    other.served()  # the one that was refused
    assert place.serve("192.0.2.2") is Full.ADDRESS
    place.served()
    assert other.serve("192.0.2.1") is None
    other.leave()
    assert place.serve("192.0.2.1") is None
    assert place.serve("192.0.2.2") is None
    place.leave()
    assert gate.num_open == 0
    assert not gate._per_address


def test_an_ipv6_client_has_a_network_of_addresses() -> None:
    gate = Gate(_many, None, 1)
    assert isinstance(_enter(gate, "2001:db8:0:1::1"), Place)
    assert _enter(gate, "2001:db8:0:1:ffff::2") is Full.ADDRESS
    assert isinstance(_enter(gate, "2001:db8:0:2::1"), Place)
    assert isinstance(_enter(gate, "fe80::1%eth0"), Place)


def test_a_proxys_connections_count_for_its_clients() -> None:
    gate = Gate(_many, None, 1, TrustedProxies([ip_network("10.0.0.0/8")]))
    places = [_enter(gate, "10.0.0.1") for _ in range(4)]
    answers = []
    for place, client in zip(places, ("192.0.2.1", "192.0.2.1", "192.0.2.2"), strict=False):
        assert isinstance(place, Place)
        answers.append(place.belongs_to(client))
    assert answers == [None, Full.ADDRESS, None]
    for place in places:
        assert isinstance(place, Place)
        place.leave()
    assert gate.num_open == 0
    assert isinstance(_enter(gate, "192.0.2.1"), Place)


def test_few_files_leave_a_quarter_of_them() -> None:
    with socket.socket() as accepted:
        number = accepted.fileno()
        assert isinstance(Gate(lambda: 2 * number + 64).enter(_Transport("192.0.2.1", accepted)), Place)
        assert Gate(lambda: number).enter(_Transport("192.0.2.1", accepted)) is Full.NO_FILES


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


@pytest.mark.parametrize(
    ("bounds", "status"),
    [({"max_connections": 1}, 503), ({"max_connections_per_address": 1}, 429)],
)
async def test_who_is_one_too_many_is_told_on_both_ports(bounds: dict[str, int], status: int) -> None:
    async with serving(ScriptedBackplane(echo=True), **bounds) as harness:  # type: ignore[arg-type]
        first = await harness.tcp()
        assert (await first.receive())["type"] == "hello"
        second = await harness.tcp()
        (message,) = await second.receive_all()
        assert (message["type"], message["code"]) == ("error", "too_many_connections")
        await second.close()
        with pytest.raises(InvalidStatus) as caught:
            await connect(harness.ws_url)
        assert caught.value.response.status_code == status
        # One that asks nothing is told too.
        silent = await harness.raw_ws()
        assert (await silent.reader.read()).startswith(b"HTTP/1.1 %d" % status)
        await silent.close()
        # Those before it are served, and leave their place to others.
        await first.send({"type": "close"})
        assert (await first.receive())["is_final"]
        await first.close()
        await wait_until(lambda: not harness.connections)
        async with connect(harness.ws_url) as client:
            assert '"hello"' in str(await client.recv())


async def test_behind_a_trusted_proxy_clients_count_by_themselves() -> None:
    async with serving(
        ScriptedBackplane(), max_connections_per_address=1, trusted_proxies=["127.0.0.0/8"]
    ) as harness:

        def of(address: str) -> connect:
            return connect(harness.ws_url, additional_headers={"X-Forwarded-For": f"9.9.9.9, {address}"})

        async with of("192.0.2.1") as first, of("192.0.2.2") as second:
            await first.recv()
            await second.recv()
            with pytest.raises(InvalidStatus) as caught:
                await of("192.0.2.1")
            assert caught.value.response.status_code == 429
        assert [request.address for request in harness.requests] == ["192.0.2.1", "192.0.2.2"]
