"""The status port, and its look at Redis, shared by those who ask at once."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Coroutine
from typing import Any
from unittest.mock import Mock

import pytest

from common.errors import RedisUnavailable
from ingress.status import SHARED_FOR_S, SharedStatus, StatusShell
from tests.fake_backplane import ScriptedBackplane
from tests.ingress_harness import HOST, serving


def _start(coroutine: Coroutine[Any, Any, None], name: str) -> object:
    return asyncio.get_running_loop().create_task(coroutine, name=name)


async def test_those_who_ask_at_once_share_one_look() -> None:
    looks = 0

    async def read() -> bytes:
        nonlocal looks
        looks += 1
        await asyncio.sleep(0)
        return b"%d" % looks

    shared = SharedStatus(read, _start)
    assert list(await asyncio.gather(shared(), shared(), shared())) == [b"1"] * 3
    shared._asked_at -= SHARED_FOR_S * 2
    assert await shared() == b"2"


async def test_a_failure_reaches_all_who_asked_and_is_not_kept() -> None:
    answers: list[bytes | None] = [None, b"fine"]

    async def read() -> bytes:
        answer = answers.pop(0)
        if answer is None:
            raise RedisUnavailable
        return answer

    shared = SharedStatus(read, _start)
    for outcome in await asyncio.gather(shared(), shared(), return_exceptions=True):
        assert isinstance(outcome, RedisUnavailable)
    shared._asked_at -= SHARED_FOR_S * 2
    assert await shared() == b"fine"


async def test_one_who_leaves_takes_the_answer_from_nobody() -> None:
    gate = asyncio.Event()

    async def read() -> bytes:
        await gate.wait()
        return b"line"

    shared = SharedStatus(read, _start)
    leaving = asyncio.create_task(shared())
    staying = asyncio.create_task(shared())
    await asyncio.sleep(0)
    leaving.cancel()
    with pytest.raises(asyncio.CancelledError):
        await leaving
    gate.set()
    assert await staying == b"line"


async def test_the_status_port_says_one_line_and_closes() -> None:
    async with serving(ScriptedBackplane(), status=lambda: b'{"type":"status"}') as harness:
        reader, writer = await asyncio.open_connection(HOST, harness.status_port)
        async with asyncio.timeout(60):
            assert await reader.read() == b'{"type":"status"}\n'
        writer.close()
        await writer.wait_closed()


async def test_the_status_port_without_redis_says_so() -> None:
    async with serving(ScriptedBackplane()) as harness:
        reader, writer = await asyncio.open_connection(HOST, harness.status_port)
        async with asyncio.timeout(60):
            assert json.loads(await reader.read())["code"] == "redis_unavailable"
        writer.close()
        await writer.wait_closed()


async def test_a_defect_in_the_status_is_told_and_closes(caplog: pytest.LogCaptureFixture) -> None:
    def fail() -> bytes:
        raise ValueError("nonsense in a hash")

    async with serving(ScriptedBackplane(), status=fail) as harness:
        reader, writer = await asyncio.open_connection(HOST, harness.status_port)
        async with asyncio.timeout(60):
            assert json.loads(await reader.read())["code"] == "internal"
        writer.close()
        await writer.wait_closed()
    assert "nonsense in a hash" in caplog.text


async def test_who_waits_for_redis_is_not_hung_up_on(monkeypatch: pytest.MonkeyPatch) -> None:
    """The time for reading the line begins where there is one."""
    monkeypatch.setattr("ingress.status.ABORT_AFTER_S", 0.05)

    async def read() -> bytes:
        await asyncio.sleep(0.3)
        return b"late"

    gate = Mock(has_file_for=lambda _: True)
    server = await asyncio.get_running_loop().create_server(lambda: StatusShell(gate, read, _start), HOST, 0)
    async with server:
        reader, writer = await asyncio.open_connection(HOST, server.sockets[0].getsockname()[1])
        async with asyncio.timeout(60):
            assert await reader.read() == b"late\n"
        writer.close()
        await writer.wait_closed()
