"""Streams whose connection, or ingress, was lost: resumed, or brought to their end."""

from __future__ import annotations

import asyncio
import base64
import json
import signal
import socket
import struct
import time
from functools import partial
from itertools import pairwise
from typing import Any

import orjson
import pytest

from common.entries import LineKind, pack_line
from common.options import StreamOptions
from parakeet.client import Stream, connect
from parakeet.serve.embedded_redis import EmbeddedRedis
from tests.ingress_process import IngressProcess
from tests.ports import HOST
from tests.stack import TIMEOUTS, Stack, check_gapless, collect
from tests.stream_client import expected_text, noise
from tests.waiting import until


@pytest.mark.parametrize("kill", [signal.SIGKILL, signal.SIGTERM])
async def test_a_client_goes_on_at_another_ingress(stack: Stack, kill: signal.Signals) -> None:
    stack.worker()
    first, second = stack.ingress("i-1"), stack.ingress("i-2")
    pcm = noise(8.0, seed=6)
    async with await connect((first.ws_url, second.tcp_url), timeouts=TIMEOUTS) as stream:
        async with asyncio.TaskGroup() as tasks:
            collecting = tasks.create_task(collect(stream))
            for index, at in enumerate(range(0, len(pcm), 5120)):
                await stream.send(pcm[at : at + 5120])
                if index == 20:
                    first.send(kill)
                await asyncio.sleep(0.03)
            await stream.finish()
        assert stream.num_resumptions == 1
    results = collecting.result()
    check_gapless(results)
    assert results[-1].text == expected_text(pcm)
    assert first.wait() == (0 if kill is signal.SIGTERM else -signal.SIGKILL)
    await stack.empty()


@pytest.mark.parametrize("text", ["whole", "new"])
async def test_the_text_goes_on_behind_what_the_log_still_has(stack: Stack, text: str) -> None:
    """After hundreds of results, of which Redis keeps the text and not each result."""
    stack.worker()
    first, second = stack.ingress("i-1"), stack.ingress("i-2")
    pcm = noise(64.0, seed=6)
    whole = expected_text(pcm)
    options = StreamOptions(text=text)
    urls = (first.ws_url, second.tcp_url)
    async with await connect(urls, options=options, timeouts=TIMEOUTS) as stream:
        async with asyncio.TaskGroup() as tasks:
            collecting = tasks.create_task(collect(stream))
            for at in range(0, len(pcm), 32_000):
                await stream.send(pcm[at : at + 32_000])
                if at == 55 * 32_000:
                    await until(lambda: stream._last_seq > 300, what="hundreds of results")
                    kept = stack.client.strlen(f"px:{{0}}:{stream.stream_id}:t")
                    assert kept > 0.8 * len(whole) * 300 / 400
                    first.send(signal.SIGKILL)
            await stream.finish()
        assert stream.num_resumptions == 1
    results = collecting.result()
    check_gapless(results)
    assert results[-1].text == whole
    for before, result in pairwise(results):
        assert whole.startswith(result.text)
        assert len(result.text) > len(before.text) or not result.token_ids
        # Few are merged, and each of the others adds a token or none.
        if text == "new" and result.seq_first is None:
            assert result.text_from == len(before.text)
    await stack.empty()


def resumed(stream: Stream, times: int) -> bool:
    return stream.num_resumptions == times


@pytest.mark.parametrize("max_num_streams", [1, 100])
async def test_a_client_goes_on_at_the_same_ingress(stack: Stack, max_num_streams: int) -> None:
    """Also where the cluster is full, of this very stream."""
    stack.worker()
    ingress = stack.ingress(max_num_streams=max_num_streams)
    pcm = noise(6.0, seed=7)
    async with await connect(ingress.tcp_url, timeouts=TIMEOUTS) as stream:
        async with asyncio.TaskGroup() as tasks:
            collecting = tasks.create_task(collect(stream))
            for index, at in enumerate(range(0, len(pcm), 5120)):
                await stream.send(pcm[at : at + 5120])
                if index in (10, 20):
                    channel: Any = stream._channel
                    channel._writer.transport.abort()
                    await until(partial(resumed, stream, index // 10), what="the resumption")
                await asyncio.sleep(0.03)
            await stream.finish()
        assert stream.num_resumptions == 2
    results = collecting.result()
    check_gapless(results)
    assert results[-1].text == expected_text(pcm)
    await stack.empty()


async def test_a_stream_goes_on_after_an_outage_of_redis_that_was_too_long_for_its_connection(
    own_stack: Stack, own_server: EmbeddedRedis
) -> None:
    """The error is the service's, so the stream waits for its client, who sends what Redis does not have."""
    own_stack.worker()
    ingress = own_stack.ingress(redis_timeout_ms=500, redis_outage_s=1)
    pcm = noise(2.0, seed=8)
    half = len(pcm) // 2
    async with await connect(ingress.tcp_url, timeouts=TIMEOUTS) as stream:
        await stream.send(pcm[:half])
        await anext(stream.results())
        own_server.send_signal(signal.SIGSTOP)
        await stream.send(pcm[half:])
        await until(lambda: stream._channel is None, 60, "the error that closes the connection")
        own_server.send_signal(signal.SIGCONT)
        await stream.finish()
        results = await collect(stream)
    assert stream.num_resumptions
    assert results[-1].audio_ack_samples == len(pcm) // 2
    assert results[-1].text == expected_text(pcm)
    numbers = [number for one in results for number in range(one.seq_first or one.seq, one.seq + 1)]
    assert numbers == sorted(set(numbers)), "no result comes twice"
    await own_stack.empty()


async def test_resume_takes_the_right_secret_and_a_result_that_was_only(stack: Stack) -> None:
    stack.worker()
    ingress = stack.ingress()
    async with await connect(ingress.tcp_url, timeouts=TIMEOUTS) as stream:
        await stream.send(noise(1.0))
        await anext(stream.results())
        token = stream._identity.hello.resume_token
        for stream_id, secret, last_seq, says in (
            (stream.stream_id, "wrong", 0, "secret"),
            (stream.stream_id, "\ud800", 0, "secret"),
            (10_000, token, 0, "gone"),
            (stream.stream_id, token, 1_000, "no result 1000 yet"),
        ):
            reader, writer = await asyncio.open_connection(HOST, ingress.port)
            await reader.readline()
            request = {"type": "resume", "stream_id": stream_id, "resume_token": secret, "last_seq": last_seq}
            writer.write(json.dumps(request | {"audio_ack_samples": 0}).encode() + b"\n")
            async with asyncio.timeout(60):
                (answer,) = (await reader.read()).splitlines()
            error = json.loads(answer)
            assert error["code"] == "resume_refused"
            assert says in error["message"]
            writer.close()
            await writer.wait_closed()
        await stream.finish()
        assert (await stream.final()).is_final
    await stack.empty()


async def test_a_stream_that_nobody_resumes_is_finalized_after_the_grace(stack: Stack) -> None:
    stack.worker()
    grace_s = 2
    ingress = stack.ingress(resume_grace_s=grace_s)
    stream = await connect(ingress.tcp_url, options=StreamOptions(), timeouts=TIMEOUTS)
    await stream.send(noise(1.0))
    await anext(stream.results())
    channel: Any = stream._channel
    for task in stream._tasks:
        task.cancel()
    left_at = time.monotonic()
    channel._writer.transport.abort()
    await stack.empty()
    assert time.monotonic() - left_at >= grace_s, "it was kept for its client"
    await stream.close()


async def test_a_worker_waits_for_the_next_heartbeat_before_it_ends_streams_of_an_ingress(
    stack: Stack,
) -> None:
    """Where Redis has lost who is there, every ingress looks gone until it beats again."""
    stack.worker()
    ingress = stack.ingress(resume_grace_s=0, heartbeat_ms=4_000)
    stream = await connect(ingress.tcp_url, resume=False, timeouts=TIMEOUTS)
    await stream.send(noise(1.0))
    await anext(stream.results())
    (record,) = stack.client.scan_iter(match="px:{0}:[0-9]*:m")
    assert int(stack.client.hget(record, "grace_ms")) == 8_000
    await stream.close()


async def test_an_ingress_restarted_under_its_name_ends_what_its_last_process_left(stack: Stack) -> None:
    stack.worker()
    # The worker ends what is left after this time: the new process has to be there before.
    first = stack.ingress("i-1", resume_grace_s=20)
    streams = [await connect(first.tcp_url, resume=False, timeouts=TIMEOUTS) for _ in range(3)]
    for stream in streams:
        await stream.send(noise(1.0))
        await anext(stream.results())
    first.send(signal.SIGKILL)
    first.wait()
    for stream in streams:
        await stream.close()
    stack.client.zrem("px:{0}:ingresses", "i-1")
    second = stack.ingress("i-1", resume_grace_s=20)
    await stack.empty()
    assert second.log_text().count("adopting") == 3


class _Wire:
    """A client that says what it is told to, and knows nothing of resuming."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._reader = reader
        self._writer = writer

    @staticmethod
    async def open(port: int) -> _Wire:
        return _Wire(*await asyncio.open_connection(HOST, port))

    async def send(self, **fields: object) -> None:
        self._writer.write(orjson.dumps(fields) + b"\n")
        await self._writer.drain()

    async def receive(self) -> dict[str, Any]:
        async with asyncio.timeout(60):
            message: dict[str, Any] = orjson.loads(await self._reader.readline())
        return message

    async def result(self) -> dict[str, Any]:
        """The next result; acknowledgements are passed over."""
        while (message := await self.receive())["type"] == "ack":
            pass
        return message

    async def error(self) -> dict[str, Any]:
        """The error that ends it; results that were under way are passed over."""
        while (message := await self.result())["type"] == "result":
            assert not message["is_final"], message
        return message

    def abort(self) -> None:
        """Reset the connection: where its audio is complete, an orderly end would say nothing."""
        at_once = struct.pack("ii", 1, 0)
        self._writer.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, at_once)
        self._writer.transport.abort()

    async def close(self) -> None:
        self._writer.close()
        await self._writer.wait_closed()


def _audio(pcm: bytes, **more: object) -> dict[str, object]:
    return {"type": "audio", "data": base64.b64encode(pcm).decode(), **more}


async def _begin(ingress: IngressProcess, pcm: bytes) -> tuple[_Wire, dict[str, Any]]:
    """A stream that may be resumed, with its first result; return its `hello` too."""
    client = await _Wire.open(ingress.port)
    hello = await client.receive()
    await client.send(type="config", resume=True)
    await client.send(**_audio(pcm))
    assert (await client.result())["seq"] == 1
    return client, hello


async def _resume(
    ingress: IngressProcess, hello: dict[str, Any], acked_samples: int, last_seq: int = 1
) -> _Wire:
    """A connection that asks for the stream, of which its client has one result, or more."""
    client = await _Wire.open(ingress.port)
    assert (await client.receive())["type"] == "hello"
    acked = {"last_seq": last_seq, "audio_ack_samples": acked_samples}
    await client.send(
        type="resume", stream_id=hello["stream_id"], resume_token=hello["resume_token"], **acked
    )
    return client


async def _final(client: _Wire) -> dict[str, Any]:
    """The final result, on a connection that has just asked to resume."""
    assert (await client.receive())["type"] == "resumed"
    while not (result := await client.result()).get("is_final"):
        assert result["type"] == "result", result
    return result


def _audio_is_complete(stack: Stack, stream: int) -> bool:
    last = stack.client.xrevrange(f"px:{{0}}:{stream}:a", count=1)
    return bool(last) and b"x" in last[0][1]


@pytest.mark.parametrize("ended", [True, False], ids=["ended", "ending"])
async def test_the_end_of_a_stream_whose_audio_was_complete_comes_at_once(stack: Stack, ended: bool) -> None:
    """Nothing tells its worker that it has moved, whether it has ended before or ends now."""
    worker = stack.worker(lease_ms=120_000)
    first = stack.ingress("i-1")
    # Nobody publishes the end to this one, and it would not find it by its looks after quiet streams.
    second = stack.ingress("i-2", module="tests.altered.unwatchful_ingress")
    pcm = noise(2.0, seed=8)
    lost, hello = await _begin(first, pcm[:5120])
    stream = hello["stream_id"]
    worker.send(signal.SIGSTOP)
    await lost.send(**_audio(pcm[5120:], final=True))
    await until(lambda: _audio_is_complete(stack, stream), what="the end of the audio")
    first.send(signal.SIGKILL)
    first.wait()
    await lost.close()
    if ended:
        worker.send(signal.SIGCONT)
        await until(lambda: stack.client.hexists(f"px:{{0}}:{stream}:m", "finished"), what="its end")
    found = await _resume(second, hello, 2560)
    assert (await found.receive())["type"] == "resumed"
    if not ended:
        worker.send(signal.SIGCONT)
    while not (result := await found.result()).get("is_final"):
        assert result["type"] == "result", result
    assert result["text"] == expected_text(pcm)
    await found.close()
    await stack.empty()


@pytest.mark.parametrize("end_is", ["sent to it", "sent to nobody", "sent to a draining ingress"])
async def test_a_client_lost_before_it_has_the_end_comes_back_for_it(stack: Stack, end_is: str) -> None:
    """Its ingress lives, and may have sent the end: that the client has it, it cannot know."""
    worker = stack.worker(lease_ms=120_000)
    first, second = (stack.ingress(name, resume_grace_s=120) for name in ("i-1", "i-2"))
    pcm = noise(2.0, seed=9)
    stays = await _Wire.open(first.port)  # without `resume`: until it leaves, its ingress does not stop
    await stays.receive()
    await stays.send(**_audio(pcm))
    lost, hello = await _begin(first, pcm[:5120])
    stream = hello["stream_id"]
    worker.send(signal.SIGSTOP)
    await lost.send(**_audio(pcm[5120:], final=True))
    await until(lambda: _audio_is_complete(stack, stream), what="the end of the audio")
    if end_is == "sent to nobody":
        connections = partial(stack.client.hget, "px:{0}:i:i-1", "connections")
        await until(lambda: connections() == b"2", what="a heartbeat")
        lost.abort()
        await until(lambda: connections() == b"1", what="the loss of the connection")
    elif end_is == "sent to a draining ingress":
        first.send(signal.SIGTERM)
        assert (await lost.error())["code"] == "draining"
    worker.send(signal.SIGCONT)

    def slot_is_free() -> bool:
        return stack.client.zscore("px:{0}:adm", stream) is None

    await until(slot_is_free, what="the end of the admission")
    if end_is != "sent to nobody":
        lost.abort()
    for _ in range(2):  # it may be lost again
        found = await _resume(second if end_is == "sent to a draining ingress" else first, hello, 2560)
        assert (await _final(found))["text"] == expected_text(pcm)
        assert slot_is_free()
        found.abort()
    stays.abort()
    await stack.empty()


async def test_a_client_that_has_the_end_is_told_so(stack: Stack) -> None:
    """It would wait in vain: no result follows the one that it has."""
    stack.worker()
    ingress = stack.ingress(resume_grace_s=120)
    lost, hello = await _begin(ingress, noise(2.0))
    await lost.send(type="close")
    while not (final := await lost.result()).get("is_final"):
        pass
    lost.abort()
    found = await _resume(ingress, hello, final["audio_ack_samples"], last_seq=final["seq"])
    error = await found.error()
    assert error["code"] == "resume_refused"
    assert f"result {final['seq']} was its last" in error["message"]
    found.abort()
    await stack.empty()


async def test_a_client_that_is_ahead_of_the_log_waits_for_the_successor(stack: Stack) -> None:
    """Its last result came from an owner that had lost the stream: Redis refused it, and published it."""
    worker = stack.worker(lease_ms=120_000)
    first, second = stack.ingress("i-1"), stack.ingress("i-2", module="tests.altered.patient_ingress")
    pcm = noise(2.0)
    lost, hello = await _begin(first, pcm[:5120])
    stream = hello["stream_id"]
    worker.send(signal.SIGSTOP)
    entry_id, entry = stack.client.xrevrange(f"px:{{0}}:{stream}:r", count=1)[0]
    epoch, seq = map(int, entry_id.split(b"-"))
    assert seq == 1
    await lost.send(**_audio(pcm[5120:]))

    def all_audio_is_there() -> bool:
        entries = stack.client.xrange(f"px:{{0}}:{stream}:a")
        return sum(len(fields.get(b"p", b"")) for _, fields in entries) == len(pcm)

    await until(all_audio_is_there, what="the rest of the audio")
    stack.client.publish("px:in:i-1", pack_line(LineKind(entry[b"k"]), stream, epoch, 2, 5120, entry[b"d"]))
    assert (await lost.result())["seq"] == 2
    lost.abort()
    found = await _resume(second, hello, 5120, last_seq=2)
    worker.send(signal.SIGCONT)
    assert (await found.receive())["type"] == "resumed"
    await found.send(**_audio(b"", final=True))
    seq = 2
    while not (result := await found.result()).get("is_final"):
        assert (result["type"], result["seq"]) == ("result", seq := seq + 1), result
    assert result["text"] == expected_text(pcm)
    await found.close()
    await stack.empty()


async def test_a_stream_whose_audio_cannot_be_read_is_ended(stack: Stack) -> None:
    worker = stack.worker(lease_ms=120_000)
    first, second = stack.ingress("i-1"), stack.ingress("i-2")
    lost, hello = await _begin(first, noise(1.0))
    worker.send(signal.SIGSTOP)
    stack.client.xadd(f"px:{{0}}:{hello['stream_id']}:a", {b"o": b"no number"}, id=b"1-1000")
    first.send(signal.SIGKILL)
    first.wait()
    await lost.close()
    found = await _resume(second, hello, 2560)
    assert (await found.receive())["code"] == "internal"
    await found.close()
    worker.send(signal.SIGCONT)
    await stack.empty()


async def test_an_adopted_stream_whose_audio_cannot_be_read_is_ended(stack: Stack) -> None:
    worker = stack.worker(lease_ms=120_000)
    first = stack.ingress("i-1")
    lost, hello = await _begin(first, noise(1.0))
    worker.send(signal.SIGSTOP)
    stack.client.xadd(f"px:{{0}}:{hello['stream_id']}:a", {b"o": b"no number"}, id=b"1-1000")
    first.send(signal.SIGKILL)
    first.wait()
    await lost.close()
    stack.client.zrem("px:{0}:ingresses", "i-1")
    stack.ingress("i-1")
    worker.send(signal.SIGCONT)
    await stack.empty()
