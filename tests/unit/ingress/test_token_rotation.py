"""When a connection says that its client has the token which a resumption brought."""

from __future__ import annotations

import base64

import pytest

from tests.fake_backplane import ScriptedBackplane
from tests.ingress_harness import serving, wait_until

pytestmark = pytest.mark.one_loop

_RESUME = {
    "type": "resume",
    "stream_id": 7,
    "resume_token": "old",
    "last_seq": 0,
    "audio_ack_samples": 0,
}


@pytest.mark.parametrize(
    "first",
    [
        {"type": "audio", "data": base64.b64encode(b"\0\0").decode()},
        {"type": "ping"},
        {"type": "finalize"},
        {"type": "close"},
    ],
)
async def test_the_first_message_behind_resumed_confirms_the_token_once(first: dict[str, object]) -> None:
    backplane = ScriptedBackplane()
    async with serving(backplane) as harness:
        client = await harness.tcp()
        await client.receive()
        await client.send(_RESUME)
        assert (await client.receive())["resume_token"] == "secret"
        assert backplane.link.confirmed == 0
        await client.send(b"\n")  # says nothing
        await client.send(first)
        await client.send({"type": "ping"})
        await client.receive()
        await wait_until(lambda: backplane.link.confirmed == 1)
        await client.close()


async def test_what_came_before_resumed_confirms_nothing() -> None:
    backplane = ScriptedBackplane()
    async with serving(backplane) as harness:
        client = await harness.tcp()
        await client.receive()
        backplane.gate.clear()
        await client.send(_RESUME)
        await client.send({"type": "ping"})
        assert await client.receive() == {"type": "pong"}
        backplane.gate.set()
        assert (await client.receive())["type"] == "resumed"
        assert backplane.link.confirmed == 0
        await client.close()
        await wait_until(lambda: not harness.connections)
        assert backplane.link.confirmed == 0


async def test_a_new_stream_has_nothing_to_confirm() -> None:
    backplane = ScriptedBackplane(echo=True)
    async with serving(backplane) as harness:
        client = await harness.tcp()
        await client.receive()
        await client.send({"type": "close"})
        await client.receive_all()
        assert backplane.link.confirmed == 0
        await client.close()
