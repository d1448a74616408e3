"""A client may have so many `finalize` messages without an answer, and no more."""

from __future__ import annotations

from common.entries import LineKind
from ingress.client_stream import MAX_UNANSWERED_FINALIZES
from tests.fake_backplane import ScriptedBackplane, some_result
from tests.ingress_harness import serving, wait_until

_FINALIZE = {"type": "finalize"}


async def test_finalizes_are_bounded_until_they_are_answered() -> None:
    backplane = ScriptedBackplane()
    async with serving(backplane) as harness:
        client = await harness.tcp()
        await client.receive()
        for _ in range(MAX_UNANSWERED_FINALIZES):
            await client.send(_FINALIZE)
        await wait_until(lambda: backplane.link.log.count("finalize") == MAX_UNANSWERED_FINALIZES)
        backplane.link.listener.on_result(LineKind.FINALIZED, some_result(1))
        assert (await client.receive())["type"] == "result"
        await client.send(_FINALIZE)
        await wait_until(lambda: backplane.link.log.count("finalize") == MAX_UNANSWERED_FINALIZES + 1)
        await client.send(_FINALIZE)
        error = (await client.receive_all())[-1]
        assert (error["type"], error["code"]) == ("error", "too_much_audio")
        assert backplane.link.log[-1] == "abandon"
        await client.close()
