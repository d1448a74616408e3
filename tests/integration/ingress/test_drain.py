"""An ingress that is stopped: its streams end, go to another ingress, or are ended at its deadline."""

from __future__ import annotations

import asyncio
import signal
from dataclasses import replace

import pytest

from parakeet.client import ServerError, connect
from parakeet.client.errors import ClientError
from tests.ports import HOST
from tests.stack import TIMEOUTS, Stack
from tests.stream_client import expected_text, noise
from tests.waiting import until

pytestmark = pytest.mark.one_server


async def test_stopping_while_streams_run_lets_them_end(stack: Stack) -> None:
    stack.worker()
    ingress = stack.ingress(drain_timeout_s=90)
    pcm = noise(2.0, seed=8)
    async with await connect(ingress.tcp_url, resume=False, timeouts=TIMEOUTS) as stream:
        await stream.send(pcm[:32000])
        await anext(stream.results())
        ingress.send(signal.SIGTERM)
        await until(lambda: "draining" in ingress.log_text())
        with pytest.raises(OSError):
            await asyncio.open_connection(HOST, ingress.port)
        await stream.send(pcm[32000:])
        await stream.finish()
        assert (await stream.final()).text == expected_text(pcm)
    assert ingress.wait() == 0
    assert stack.client.zcard("px:{0}:ingresses") == 0
    await stack.empty()


@pytest.mark.parametrize("num_ingresses", [1, 2])
async def test_a_stream_that_can_resume_ends_where_it_is_when_no_ingress_is_left(
    stack: Stack, num_ingresses: int
) -> None:
    """`serve` on one machine stops all of its ingresses at once."""
    stack.worker()
    ingresses = [stack.ingress(f"i-{index}", drain_timeout_s=90) for index in range(num_ingresses)]
    pcm = noise(2.0, seed=8)
    async with await connect(ingresses[0].tcp_url, resume=True, timeouts=TIMEOUTS) as stream:
        await stream.send(pcm[:32000])
        await anext(stream.results())
        for ingress in ingresses:
            ingress.send(signal.SIGTERM)
        await until(lambda: "draining" in ingresses[0].log_text())
        await asyncio.sleep(2.5)  # several looks for another ingress: there is nothing else to wait for
        await stream.send(pcm[32000:])
        await stream.finish()
        assert (await stream.final()).text == expected_text(pcm)
    assert [ingress.wait() for ingress in ingresses] == [0] * num_ingresses
    assert stack.client.zcard("px:{0}:ingresses") == 0
    await stack.empty()


async def test_a_stream_that_can_resume_is_sent_to_an_ingress_that_serves(stack: Stack) -> None:
    """Also where that one starts after the drain has begun."""
    stack.worker()
    first = stack.ingress("i-1", drain_timeout_s=90)
    pcm = noise(2.0, seed=8)
    wire = await connect(first.tcp_url, resume=True, timeouts=replace(TIMEOUTS, resume_s=0.1))
    await wire.send(pcm[:32000])
    await anext(wire.results())
    first.send(signal.SIGTERM)
    await until(lambda: "draining" in first.log_text())
    stack.ingress("i-2")
    assert first.wait() == 0
    with pytest.raises(ClientError):
        await wire.final()
    await wire.close()


async def test_a_drain_ends_at_its_deadline(stack: Stack) -> None:
    stack.worker()
    ingress = stack.ingress(drain_timeout_s=0.5)
    async with await connect(ingress.tcp_url, resume=False, timeouts=TIMEOUTS) as stream:
        await stream.send(noise(1.0))
        await anext(stream.results())
        ingress.send(signal.SIGTERM)
        with pytest.raises(ServerError) as caught:
            await stream.final()
        assert caught.value.code == "draining"
    assert ingress.wait() == 0
    await stack.empty()
