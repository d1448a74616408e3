"""Connections are taken out of the kernel's queue at once, and opened in turns."""

from __future__ import annotations

import asyncio
import errno
import logging
import socket
import struct
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager, closing, contextmanager, suppress
from typing import Any

import pytest

from ingress.sockets import acceptor as acceptor_module
from ingress.sockets.acceptor import MAX_WAITING, OPENED_A_TURN, Acceptor, listening_sockets
from ingress.sockets.turns import Turns
from tests.ingress_harness import HOST, wait_until

_RESET = struct.pack("ii", 1, 0)


class _Held(Turns):
    """Turns that come when the test says so."""

    def __init__(self) -> None:
        super().__init__()
        self.asked: list[Any] = []

    def at_once(self, turn: Any) -> bool:
        return False

    def ask(self, turn: Any) -> None:
        self.asked.append(turn)

    def give_one(self) -> None:
        self.asked.pop(0)()


class _Server(asyncio.Protocol):
    opened: list[_Server]

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = transport
        self.opened.append(self)

    def data_received(self, data: bytes) -> None:
        self.transport.write(data)  # type: ignore[attr-defined]


@asynccontextmanager
async def _accepting(turns: Turns) -> AsyncIterator[tuple[Acceptor, list[_Server]]]:
    opened: list[_Server] = []
    async with asyncio.TaskGroup() as tasks:
        (listener,) = await listening_sockets(HOST, 0)
        server = type("Server", (_Server,), {"opened": opened})
        acceptor = Acceptor(
            listener, server, turns, lambda coroutine, name: tasks.create_task(coroutine, name=name)
        )
        try:
            yield acceptor, opened
        finally:
            acceptor.close()
            for one in opened:
                one.transport.abort()  # type: ignore[attr-defined]


@contextmanager
def _clients(acceptor: Acceptor, count: int) -> Iterator[list[socket.socket]]:
    clients = [socket.create_connection((HOST, acceptor.port)) for _ in range(count)]
    try:
        yield clients
    finally:
        for client in clients:
            client.close()


def _reset(client: socket.socket) -> None:
    client.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _RESET)
    client.close()


async def test_a_connection_is_opened_at_once_where_nobody_waits() -> None:
    async with _accepting(Turns()) as (acceptor, opened):
        reader, writer = await asyncio.open_connection(HOST, acceptor.port)
        writer.write(b"hello")
        async with asyncio.timeout(60):
            assert await reader.readexactly(5) == b"hello"
        assert len(opened) == 1
        accepted = opened[0].transport.get_extra_info("socket")
        assert accepted.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY)
        writer.close()


async def test_few_are_opened_in_a_turn() -> None:
    turns = _Held()
    async with _accepting(turns) as (acceptor, opened):
        with _clients(acceptor, OPENED_A_TURN + 1):
            await wait_until(lambda: bool(turns.asked))
            assert not opened
            turns.give_one()
            await wait_until(lambda: len(opened) == OPENED_A_TURN)
            assert len(turns.asked) == 1  # however many wait
            turns.give_one()
            await wait_until(lambda: len(opened) == OPENED_A_TURN + 1)


async def test_who_is_gone_before_its_turn_is_never_opened() -> None:
    """A flood of them is no queue for the next client."""
    turns = _Held()
    async with _accepting(turns) as (acceptor, opened):
        with _clients(acceptor, 5 * OPENED_A_TURN) as clients:
            for client in clients:
                _reset(client)
            with _clients(acceptor, 1):
                await wait_until(lambda: bool(turns.asked))
                turns.give_one()
                await wait_until(lambda: len(opened) == 1)


async def test_who_has_said_all_before_its_turn_is_there() -> None:
    turns = _Held()
    async with _accepting(turns) as (acceptor, opened):
        with _clients(acceptor, 1) as (client,):
            client.sendall(b"all")
            client.shutdown(socket.SHUT_WR)
            await wait_until(lambda: bool(turns.asked))
            turns.give_one()
            await wait_until(lambda: len(opened) == 1)


async def test_those_that_wait_are_bounded() -> None:
    turns = _Held()
    async with _accepting(turns) as (acceptor, opened):
        with _clients(acceptor, MAX_WAITING + 200):
            await wait_until(lambda: bool(turns.asked))
            for _ in range(20):
                turns.give_one()
            await wait_until(lambda: len(opened) == 20 * OPENED_A_TURN)
            assert len(acceptor._accepted) <= MAX_WAITING
            while turns.asked:
                turns.give_one()
            await wait_until(lambda: len(opened) == MAX_WAITING + 200)


async def test_a_stop_opens_those_that_wait() -> None:
    turns = _Held()
    async with _accepting(turns) as (acceptor, opened):
        with _clients(acceptor, OPENED_A_TURN + 1):
            await wait_until(lambda: bool(turns.asked))
            turns.give_one()
            await wait_until(lambda: len(opened) == OPENED_A_TURN)
            port = acceptor.port
            acceptor.stop()
            await wait_until(lambda: len(opened) == OPENED_A_TURN + 1)
            with pytest.raises(ConnectionRefusedError):
                socket.create_connection((HOST, port))
            while turns.asked:
                turns.give_one()  # of a listener that is closed


class _Later(Turns):
    """Grants no turn at once, as while others wait."""

    def at_once(self, turn: Callable[[], None]) -> bool:
        return False


@pytest.mark.parametrize("turns", [Turns, _Later])
@pytest.mark.parametrize(
    ("number", "levels"),
    [(errno.EMFILE, [logging.ERROR]), (errno.EPROTO, []), (errno.EPERM, []), (errno.EIO, [logging.ERROR])],
)
async def test_an_error_of_one_accept_is_a_pause_at_most(
    number: int,
    levels: list[int],
    turns: type[Turns],
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    monkeypatch.setattr(acceptor_module, "_PAUSE_S", 0.05)

    class _Failing(socket.socket):
        failed = False

        def accept(self) -> tuple[socket.socket, Any]:
            if not self.failed:
                self.failed = True
                raise OSError(number, "")
            return super().accept()

    async with _accepting(turns()) as (acceptor, opened):
        bound = acceptor._listener
        acceptor._stop_reading()
        with closing(_Failing(fileno=bound.detach())) as listener:
            listener.setblocking(False)
            acceptor._listener = listener
            acceptor._read()
            with _clients(acceptor, 1), caplog.at_level(logging.ERROR):
                await wait_until(lambda: len(opened) == 1)
            assert [record.levelno for record in caplog.records] == levels
            acceptor.close()


async def test_those_that_wait_leave_files_for_everything_else() -> None:
    opened: list[_Server] = []
    turns, numbers = _Held(), set[int]()

    def has_file(number: int) -> bool:
        numbers.add(number)
        return len(numbers) <= 5

    async with asyncio.TaskGroup() as tasks:
        (listener,) = await listening_sockets(HOST, 0)
        server = type("Server", (_Server,), {"opened": opened})
        acceptor = Acceptor(
            listener, server, turns, lambda coroutine, name: tasks.create_task(coroutine, name=name), has_file
        )
        with _clients(acceptor, 20):
            await wait_until(lambda: bool(turns.asked))
            turns.give_one()
            await wait_until(lambda: len(opened) == OPENED_A_TURN)
            assert len(acceptor._accepted) + OPENED_A_TURN == 5
        acceptor.close()
        for one in opened:
            one.transport.abort()  # type: ignore[attr-defined]


async def test_a_handshake_that_fails_is_no_other_connections() -> None:
    import ssl

    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    opened: list[_Server] = []
    async with asyncio.TaskGroup() as tasks:
        (listener,) = await listening_sockets(HOST, 0)
        acceptor = Acceptor(
            listener,
            type("Server", (_Server,), {"opened": opened}),
            Turns(),
            lambda coroutine, name: tasks.create_task(coroutine, name=name),
            tls=context,
            tls_timeout_s=5.0,
        )
        for _ in range(2):
            reader, writer = await asyncio.open_connection(HOST, acceptor.port)
            writer.write(b"this is no TLS" * 10)
            with suppress(ConnectionError):
                async with asyncio.timeout(60):
                    await reader.read()
            writer.close()
        acceptor.close()
    assert not opened
