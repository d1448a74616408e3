"""The hot path's connections on a real server: order, grouping, errors, losses, time-outs."""

from __future__ import annotations

import asyncio
import contextlib
import socket
import threading
from collections.abc import Iterator

import pytest
import redis.exceptions

from common.redis.clients import AsyncRedis, RedisServers, SyncRedis, subscription
from common.redis.connect import pack
from parakeet.serve.embedded_redis import EmbeddedRedis


@pytest.fixture(scope="module")
def server() -> Iterator[EmbeddedRedis]:
    with EmbeddedRedis() as embedded:
        client = SyncRedis(RedisServers.parse((embedded.url,)))
        client.cluster.execute_command("CONFIG", "SET", "requirepass", "secret")
        client.close()
        yield embedded


@pytest.fixture
def servers(server: EmbeddedRedis) -> RedisServers:
    return RedisServers.parse(
        (server.url.replace("unix://", "unix://:secret@") + "?db=1",), timeout_ms=30_000
    )


async def test_replies_come_in_order_and_errors_stand_where_they_belong(servers: RedisServers) -> None:
    client = AsyncRedis(servers)
    try:
        connection = client.pipelined(0)
        calls = [
            connection.send([pack(b"ECHO", b"%d" % n), pack(b"NOSUCH"), pack(b"ECHO", b"x")])
            for n in range(50)
        ]
        for number, replies in enumerate(await asyncio.gather(*calls)):
            assert replies[0] == b"%d" % number
            assert isinstance(replies[1], redis.exceptions.ResponseError)
            assert replies[2] == b"x"
        with pytest.raises(redis.exceptions.ResponseError, match="NOSUCH"):
            await connection.execute(b"NOSUCH")
        assert b"db=1" in await connection.execute(b"CLIENT", b"INFO")
    finally:
        await client.close()


async def test_a_lost_connection_fails_what_waits_and_is_opened_anew(servers: RedisServers) -> None:
    client, other = AsyncRedis(servers), AsyncRedis(servers)
    try:
        connection = client.pipelined(0)
        number = int(await connection.execute(b"CLIENT", b"ID"))
        waiting = connection.send([pack(b"BLPOP", b"never", b"0")])
        assert await other.cluster.execute_command("CLIENT", "KILL", "ID", number) == 1
        with pytest.raises(redis.exceptions.ConnectionError):
            await waiting
        assert int(await connection.execute(b"CLIENT", b"ID")) > number
    finally:
        await client.close()
        await other.close()


async def test_a_silent_server_ends_the_call_within_the_time_out() -> None:
    listener = socket.create_server(("127.0.0.1", 0))
    port = listener.getsockname()[1]
    client = AsyncRedis(RedisServers.parse((f"redis://127.0.0.1:{port}",), timeout_ms=200))
    try:
        with pytest.raises(redis.exceptions.TimeoutError):
            await client.pipelined(0).execute(b"PING")
    finally:
        await client.close()
        listener.close()


async def test_a_server_that_is_away_and_a_wrong_password_are_connection_errors(
    server: EmbeddedRedis,
) -> None:
    for url in ("unix:///nowhere/redis.sock", server.url.replace("unix://", "unix://:wrong@")):
        client = AsyncRedis(RedisServers.parse((url,), timeout_ms=30_000))
        try:
            with pytest.raises(redis.exceptions.ConnectionError):
                await client.pipelined(0).execute(b"PING")
        finally:
            await client.close()


async def test_a_cancelled_call_disturbs_no_other(servers: RedisServers) -> None:
    client = AsyncRedis(servers)
    try:
        connection = client.pipelined(0)
        await connection.execute(b"PING")
        first = asyncio.ensure_future(connection.execute(b"ECHO", b"1"))
        second = asyncio.ensure_future(connection.execute(b"ECHO", b"2"))
        await asyncio.sleep(0)
        first.cancel()
        assert await second == b"2"
    finally:
        await client.close()


def test_the_thread_s_connection(servers: RedisServers) -> None:
    client = SyncRedis(servers)
    try:
        connection = client.pipelined(0)
        big = b"v" * 300_000
        assert connection.call([pack(b"SET", b"k", big), pack(b"NOSUCH"), pack(b"GET", b"k")])[2] == big
        number = int(connection.call([pack(b"CLIENT", b"ID")])[0])
        client.cluster.execute_command("CLIENT", "KILL", "ID", number)
        assert int(connection.call([pack(b"CLIENT", b"ID")])[0]) > number
    finally:
        client.close()


def test_a_client_of_many_threads_gives_each_its_own_replies(servers: RedisServers) -> None:
    redis_servers = SyncRedis(servers)
    client = redis_servers.cluster
    wrong: list[int] = []

    def ask(number: int) -> None:
        for at in range(200):
            words = [("ECHO", f"{number}-{at}-{n}") for n in range(3)]
            if client.run(words) != [word.encode() for _, word in words]:
                wrong.append(number)

    threads = [threading.Thread(target=ask, args=(number,)) for number in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert wrong == []
    assert client.run(()) == []
    redis_servers.close()
    assert client.execute_command("ECHO", "again") == b"again"
    redis_servers.close()


def test_the_thread_s_connection_does_not_wait_for_ever() -> None:
    listener = socket.create_server(("127.0.0.1", 0))
    port = listener.getsockname()[1]
    client = SyncRedis(RedisServers.parse((f"redis://127.0.0.1:{port}",), timeout_ms=200))
    try:
        with pytest.raises(redis.exceptions.TimeoutError):
            client.pipelined(0).call([pack(b"PING")])
    finally:
        client.close()
        listener.close()


async def test_a_subscription_gets_every_message_and_subscribes_again_after_a_loss(
    servers: RedisServers,
) -> None:
    client, sync = AsyncRedis(servers), SyncRedis(servers)
    messages: asyncio.Queue[bytes | None] = asyncio.Queue()
    listening = asyncio.create_task(subscription(servers, 0, b"channel", messages.put_nowait).run())
    try:
        assert await messages.get() is None
        publish = [pack(b"PUBLISH", b"channel", b"%d" % n) for n in range(20_000)]
        sender = threading.Thread(target=lambda: sync.pipelined(0).call(publish))
        sender.start()
        found = [await messages.get() for _ in range(20_000)]
        sender.join()
        assert found == [b"%d" % n for n in range(20_000)]
        assert messages.empty()
        big = b"b" * 3_000_000  # comes in many reads, most of which complete no message
        await client.cluster.execute_command("PUBLISH", "channel", big)
        assert await messages.get() == big
        await client.cluster.execute_command("CLIENT", "KILL", "TYPE", "pubsub")
        assert await messages.get() is None
        await client.cluster.execute_command("PUBLISH", "channel", "later")
        assert await messages.get() == b"later"
    finally:
        listening.cancel()
        await asyncio.gather(listening, return_exceptions=True)
        sync.close()
        await client.close()
    assert messages.empty()


async def test_a_silent_subscription_is_probed_and_opened_anew_where_nothing_answers(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The server leaves the first probe without an answer, and answers the second one."""
    monkeypatch.setattr("common.redis.pipelined._PROBE_AFTER_S", 0.01)
    probed: list[bytes] = []

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with contextlib.suppress(asyncio.IncompleteReadError):  # the client has hung up
            await reader.readuntil(pack(b"SUBSCRIBE", b"channel"))
            writer.write(b"*3\r\n$9\r\nsubscribe\r\n$7\r\nchannel\r\n:1\r\n")
            probe = await reader.readexactly(len(pack(b"PING")))
            probed.append(probe)
            if len(probed) > 1:
                writer.write(b"*2\r\n$4\r\npong\r\n$0\r\n\r\n")
                writer.write(b"*3\r\n$7\r\nmessage\r\n$7\r\nchannel\r\n$4\r\ntext\r\n")
            await reader.read()
        writer.close()

    server = await asyncio.start_server(serve, "127.0.0.1", 0)
    port = server.sockets[0].getsockname()[1]
    servers = RedisServers.parse((f"redis://127.0.0.1:{port}",), timeout_ms=1000)
    messages: asyncio.Queue[bytes | None] = asyncio.Queue()
    listening = asyncio.create_task(subscription(servers, 0, b"channel", messages.put_nowait).run())
    try:
        heard = [await messages.get(), await messages.get()]
        while heard[-1] is None:
            heard.append(await messages.get())
        assert heard[:2] == [None, None]
        assert heard[-1] == b"text"
        assert probed[:2] == [pack(b"PING")] * 2
    finally:
        listening.cancel()
        await asyncio.gather(listening, return_exceptions=True)
        server.close()
        await server.wait_closed()
