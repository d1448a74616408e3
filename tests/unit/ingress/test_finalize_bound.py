"""A client may have so many `finalize` and `phrases` messages under way, and no more."""

from __future__ import annotations

import base64

import pytest

from common.entries import LineKind
from ingress.clients.limits import MAX_FINALIZES
from ingress.clients.streams import MAX_WAITING_PHRASES
from tests.fake_backplane import ScriptedBackplane, some_result
from tests.ingress_harness import serving, wait_until

pytestmark = pytest.mark.one_loop

_FINALIZE = {"type": "finalize"}


async def test_finalizes_are_bounded_until_they_are_answered() -> None:
    backplane = ScriptedBackplane()
    async with serving(backplane) as harness:
        client = await harness.tcp()
        await client.receive()
        for _ in range(MAX_FINALIZES):
            await client.send(_FINALIZE)
        await wait_until(lambda: backplane.link.log.count("finalize") == MAX_FINALIZES)
        backplane.link.listener.on_result(LineKind.FINALIZED, some_result(1))
        assert (await client.receive())["type"] == "result"
        await client.send(_FINALIZE)
        await wait_until(lambda: backplane.link.log.count("finalize") == MAX_FINALIZES + 1)
        await client.send(_FINALIZE)
        error = (await client.receive_all())[-1]
        assert (error["type"], error["code"]) == ("error", "too_much_audio")
        assert backplane.link.log[-1] == "abandon"
        await client.close()


async def test_lists_of_phrases_are_bounded_until_audio_behind_them_is_decoded() -> None:
    change = {"type": "phrases", "phrases": ["Zyrtec"]}
    backplane = ScriptedBackplane()
    async with serving(backplane) as harness:
        client = await harness.tcp()
        await client.receive()

        def count() -> int:
            return backplane.link.log.count("phrases Zyrtec")

        for _ in range(MAX_WAITING_PHRASES):
            await client.send(change)
        await wait_until(lambda: bool(backplane.links) and count() == MAX_WAITING_PHRASES)
        await client.send({"type": "audio", "data": base64.b64encode(bytes(640)).decode()})
        await wait_until(lambda: backplane.link.samples == 320)
        backplane.link.listener.on_ack(160)
        for _ in range(MAX_WAITING_PHRASES):
            await client.send(change)
        await wait_until(lambda: count() == 2 * MAX_WAITING_PHRASES)
        await client.send(change)
        error = (await client.receive_all())[-1]
        assert (error["type"], error["code"]) == ("error", "too_much_audio")
        assert "'phrases'" in error["message"]
        assert count() == 2 * MAX_WAITING_PHRASES
        await client.close()


async def test_lists_of_phrases_count_over_all_connections_of_a_stream() -> None:
    backplane = ScriptedBackplane()
    backplane.resumption, backplane.num_marks = (320, 320, False), MAX_WAITING_PHRASES - 1
    change = {"type": "phrases", "phrases": ["Zyrtec"]}
    async with serving(backplane) as harness:
        client = await harness.tcp()
        await client.receive()
        token = {"stream_id": 7, "resume_token": "secret", "last_seq": 0, "audio_ack_samples": 320}
        await client.send({"type": "resume", **token})
        assert (await client.receive())["type"] == "resumed"
        await client.send(change)
        await client.send(change)
        error = (await client.receive_all())[-1]
        assert (error["type"], error["code"]) == ("error", "too_much_audio")
        assert backplane.link.log.count("phrases Zyrtec") == 1
        await client.close()
