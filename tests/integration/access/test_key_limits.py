"""Limits of keys, over all ingresses and every way in; keys that are revoked while they are in use."""

from __future__ import annotations

import asyncio
import base64
import json
import signal
from http.client import HTTPConnection
from pathlib import Path
from typing import Any

import pytest
from websockets.asyncio.client import ClientConnection, connect
from websockets.exceptions import InvalidStatus

from common.auth.keys_file import revoke_key
from tests.integration.access.keyed_ingress import AUDIO, Keys, Tcp, read, serve
from tests.ports import HOST
from tests.stack import Stack
from tests.unit.ingress.http.test_transcriptions import silence
from tests.waiting import until

pytestmark = pytest.mark.one_server


@pytest.fixture
def keys(tmp_path: Path) -> Keys:
    return Keys(tmp_path)


async def test_a_recording_ends_with_the_audio_that_its_key_may_have_in_a_day(
    stack: Stack, keys: Keys
) -> None:
    _, key = keys.make(audio_s_per_day=5)
    stack.worker()
    ingress = serve(stack, keys)

    def post(seconds: int) -> tuple[int, int, str]:
        http = HTTPConnection(HOST, ingress.ws_port, timeout=60)
        http.request("POST", "/v1/listen", silence(seconds), {"Authorization": f"Bearer {key}"})
        response = http.getresponse()
        told = response.status, int(response.getheader("Retry-After") or 0), response.read().decode()
        http.close()
        return told

    assert (await asyncio.to_thread(post, 2))[0] == 200
    for _ in range(2):  # the second before it is uploaded
        status, retry_after_s, body = await asyncio.to_thread(post, 60)
        assert status == 429
        assert 0 < retry_after_s <= 86_401
        assert "as much audio today" in body


async def test_a_key_has_as_many_streams_as_it_may_over_all_ingresses(stack: Stack, keys: Keys) -> None:
    _, key = keys.make(max_streams=2)
    _, other = keys.make()
    stack.worker()
    first, second = serve(stack, keys), serve(stack, keys, "i-2")
    async with Tcp.open(first.port) as one, Tcp.open(second.port) as two:
        for client in (one, two):
            await client.send(type="auth", token=key)
            assert (await client.receive() or {})["type"] == "hello"
        async with Tcp.open(second.port) as third:
            await third.send(type="auth", token=key)
            error = await third.receive()
            assert error is not None
            assert error["code"] == "over_limit"
            assert "at once" in error["message"]
        async with Tcp.open(second.port) as neighbour:
            await neighbour.send(type="auth", token=other)
            assert (await neighbour.receive() or {})["type"] == "hello"
        assert await one.text()

    async def enters() -> bool:
        async with Tcp.open(second.port) as again:
            await again.send(type="auth", token=key)
            return (await again.receive() or {}).get("type") == "hello"

    await until(enters, what="the place that a stream has left")


async def test_a_key_at_a_limit_gets_429_before_the_upgrade(stack: Stack, keys: Keys) -> None:
    _, narrow = keys.make(max_streams=2)
    _, hasty = keys.make(new_per_minute=2)
    stack.worker()
    ingress = serve(stack, keys)

    async def opened(key: str, query: str = "") -> ClientConnection | InvalidStatus:
        headers = {"Authorization": f"Bearer {key}"}
        try:
            return await connect(f"{ingress.ws_url}/{query}", additional_headers=headers)
        except InvalidStatus as refused:
            return refused

    for key, least_wait_s, most_wait_s in ((narrow, 5, 5), (hasty, 1, 61)):
        answers = await asyncio.gather(*(opened(key) for _ in range(6)))
        clients = [one for one in answers if isinstance(one, ClientConnection)]
        refusals = [one.response for one in answers if isinstance(one, InvalidStatus)]
        assert len(clients) == 2 or (key is hasty and len(clients) <= 4), "a minute may end in between"
        assert {response.status_code for response in refusals} == {429}
        for response in refusals:
            assert least_wait_s <= int(response.headers["Retry-After"]) <= most_wait_s
        for client in clients:
            assert json.loads(await client.recv())["type"] == "hello"
        if key is narrow:
            # Refused clients have taken no slot; one that comes back for its stream is let in, to say which.
            assert stack.client.zcard("px:{0}:adm") == 2
            returned = await opened(key, "?resume")
            assert isinstance(returned, ClientConnection)
            assert json.loads(await returned.recv())["code"] == "over_limit"
            await returned.close()
        for client in clients:
            await client.close()


async def test_streams_of_an_ingress_that_died_count_no_more(stack: Stack, keys: Keys) -> None:
    _, key = keys.make(max_streams=1)
    stack.worker()
    first, second = serve(stack, keys), serve(stack, keys, "i-2")
    async with Tcp.open(first.port) as client:
        await client.send(type="auth", token=key)
        assert (await client.receive() or {})["type"] == "hello"
        first.send(signal.SIGKILL)

        async def enters() -> bool:
            async with Tcp.open(second.port) as again:
                await again.send(type="auth", token=key)
                return (await again.receive() or {}).get("type") == "hello"

        await until(enters, what="the place of the dead ingress")


async def test_a_key_begins_as_many_streams_a_minute_and_has_as_much_audio_a_day_as_it_may(
    stack: Stack, keys: Keys
) -> None:
    _, hasty = keys.make(new_per_minute=1)
    _, long = keys.make(audio_s_per_day=1)
    stack.worker()
    ingress = serve(stack, keys)

    async def answer(key: str) -> dict[str, Any]:
        async with Tcp.open(ingress.port) as client:
            await client.send(type="auth", token=key)
            first = await client.receive() or {}
            if first["type"] == "hello":
                await client.send(type="audio", data=base64.b64encode(bytes(64_000)).decode(), final=True)
                while await client.receive() is not None:
                    pass
            return first

    kinds = [await answer(hasty) for _ in range(3)]
    # A minute may end in between.
    refused = [one for one in kinds if one["type"] == "error"]
    assert refused
    assert {one["code"] for one in refused} == {"over_limit"}
    assert (await answer(long))["type"] == "hello"

    async def refused_for_today() -> bool:
        first = await answer(long)
        return first.get("code") == "over_limit" and "today" in first["message"]

    await until(refused_for_today, what="the bound of the day")


async def test_revoking_a_key_ends_its_streams_and_no_others(stack: Stack, keys: Keys) -> None:
    key_id, key = keys.make()
    _, other = keys.make()
    stack.worker()
    ingress = serve(stack, keys)
    async with (
        connect(ingress.ws_url, additional_headers={"Authorization": f"Bearer {key}"}) as revoked,
        connect(ingress.ws_url, additional_headers={"Authorization": f"Bearer {other}"}) as kept,
    ):
        for client in (revoked, kept):
            await client.recv()
            await client.send(json.dumps(AUDIO))
        revoke_key(keys.path, key_id)
        async with asyncio.timeout(90):
            messages = [json.loads(message) async for message in read(revoked)]
        assert messages[-1]["code"] == "unauthorized"
        assert revoked.close_code == 1008
        await kept.send(json.dumps({"type": "close"}))
        async with asyncio.timeout(90):
            while not json.loads(await kept.recv()).get("is_final"):
                pass


@pytest.mark.parametrize("is_lost", [False, True], ids=["there", "lost"])
async def test_a_stream_that_its_client_could_resume_ends_with_its_key(
    stack: Stack, keys: Keys, is_lost: bool
) -> None:
    """It would keep its slot for the grace, in which nobody can resume it."""
    key_id, key = keys.make()
    stack.worker()
    ingress = serve(stack, keys, resume_grace_s=600)
    async with connect(ingress.ws_url, additional_headers={"Authorization": f"Bearer {key}"}) as client:
        await client.send(json.dumps({"type": "config", "resume": True}))
        await client.send(json.dumps(AUDIO))
        while json.loads(await client.recv()).get("type") != "result":
            pass
        if is_lost:
            client.transport.abort()
            await until(lambda: stack.client.hget("px:{0}:i:i-1", "connections") == b"0", what="its loss")
        revoke_key(keys.path, key_id)
        await stack.empty()
