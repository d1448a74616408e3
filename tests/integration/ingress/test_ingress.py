"""Real ingress processes, real workers with the null engine, a real Redis: from client to client."""

from __future__ import annotations

import asyncio
import base64
import json
import resource
import signal
import socket
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from common.messages import Encoding
from common.options import StreamOptions
from gpu_worker.pipeline.g711 import MULAW
from parakeet.client import ServerError, Stream, connect
from parakeet.serve.embedded_redis import EmbeddedRedis
from tests.ingress_process import IngressProcess
from tests.ports import HOST
from tests.stack import SEES_ITS_END, TIMEOUTS, Stack, check_gapless, collect, transcribe
from tests.stream_client import expected_text, noise
from tests.waiting import until

pytestmark = pytest.mark.one_server


async def test_streams_over_tcp_and_websocket_give_the_text_of_their_audio(stack: Stack) -> None:
    stack.worker()
    ingress = stack.ingress()
    audio = [noise(2.0 + index / 3, seed=index) for index in range(6)]
    async with asyncio.TaskGroup() as tasks:
        runs = [
            tasks.create_task(
                transcribe(ingress.ws_url if index % 2 else ingress.tcp_url, pcm, 320 * (1 + index * 7))
            )
            for index, pcm in enumerate(audio)
        ]
    for pcm, run in zip(audio, runs, strict=True):
        results = run.result()
        check_gapless(results)
        assert results[-1].text == expected_text(pcm)
        assert results[-1].audio_ack_samples == len(pcm) // 2
    await stack.empty()


async def test_the_wire_is_as_documented(stack: Stack) -> None:
    stack.worker()
    ingress = stack.ingress()
    reader, writer = await asyncio.open_connection(HOST, ingress.port)
    async with asyncio.timeout(90):
        hello = json.loads(await reader.readline())
        assert hello["type"] == "hello"
        assert isinstance(hello["stream_id"], int)
        assert hello["sample_rate"] == 16000
        writer.write(b'{"type":"ping"}\n{"type":"audio","samples":[' + b"0.1," * 15999 + b"0.1]}\n")
        assert json.loads(await reader.readline()) == {"type": "pong"}
        writer.write(b'{"type":"close"}\n')
        lines = [json.loads(line) for line in (await reader.read()).splitlines()]
    writer.close()
    await writer.wait_closed()
    assert [line["type"] for line in lines] == ["result"] * len(lines)
    for line in lines:
        assert {"text", "token_ids", "confidence_scores", "last_state", "turn_detection"} <= set(line)
        assert len(line["token_ids"]) == len(line["confidence_scores"])
    assert [line["is_final"] for line in lines].count(True) == 1
    assert lines[-1]["is_final"]


async def test_each_stream_says_how_its_audio_is_written(stack: Stack) -> None:
    """At once, on both ports and in messages of any size: the text is that of the samples."""
    stack.worker()
    ingress = stack.ingress()
    pcm = noise(3.0, seed=2)
    samples = np.frombuffer(pcm, "<i2")
    mulaw = np.random.default_rng(3).integers(0, 256, 48_000, np.uint8)

    async def heard(payload: bytes, size: int, url: str, encoding: Encoding, rate: int = 16_000) -> str:
        options = StreamOptions(encoding=encoding.value, sample_rate=rate)
        async with await connect(url, options=options, timeouts=TIMEOUTS) as stream:
            for at in range(0, len(payload), size):
                await stream.send(payload[at : at + size])
            await stream.finish()
            final = await stream.final()
            assert final.audio_ack_samples == len(payload) // encoding.sample_bytes
            return final.text

    floats = (samples / np.float32(32_768)).astype("<f4").tobytes()
    linear = MULAW[mulaw].astype("<i2").tobytes()
    for url, size in ((ingress.ws_url, 6401), (ingress.tcp_url, 6401), (ingress.ws_url, 100_000)):
        assert await heard(floats, size, url, Encoding.F32) == expected_text(pcm)
        assert await heard(mulaw.tobytes(), size, url, Encoding.MULAW) == expected_text(linear)
    texts = {
        await heard(payload, size, url, encoding, 8_000)
        for payload, encoding in ((mulaw.tobytes(), Encoding.MULAW), (linear, Encoding.PCM16))
        for url, size in ((ingress.ws_url, 641), (ingress.tcp_url, 30_000))
    }
    assert len(texts) == 1
    await stack.empty()


async def test_a_final_without_any_audio_is_answered(stack: Stack) -> None:
    stack.worker()
    ingress = stack.ingress()
    results = await transcribe(ingress.ws_url, b"")
    assert [result.is_final for result in results] == [True]
    assert results[0].text == ""
    await stack.empty()


async def test_a_silent_client_keeps_no_slot_and_may_begin_later(stack: Stack) -> None:
    stack.worker()
    ingress = stack.ingress(max_num_streams=1, begin_timeout_s=0.2)
    given_back = "the slot to be given back"
    (reader, writer, hello), (late_reader, late_writer, late_hello) = [
        await _silent(stack, ingress, given_back) for _ in range(2)
    ]
    pcm = noise(1.0)
    audio = {"type": "audio", "data": base64.b64encode(pcm).decode()}
    writer.write(json.dumps(audio).encode() + b"\n")
    first = json.loads(await reader.readline())
    assert first["type"] == "result"
    # The one slot is taken again.
    late_writer.write(json.dumps(audio).encode() + b"\n")
    late = [json.loads(line) for line in (await late_reader.read()).splitlines()]
    assert [message.get("code") for message in late] == ["no_free_stream"]
    assert late_hello["stream_id"] == late[0]["stream_id"] != hello["stream_id"]
    writer.write(b'{"type":"close"}\n')
    results = [json.loads(line) for line in (await reader.read()).splitlines()]
    assert {message["type"] for message in results} == {"result"}
    assert results[-1]["text"] == expected_text(pcm)
    assert results[-1]["audio_ack_samples"] == len(pcm) // 2
    for each in (writer, late_writer):
        each.close()
        await each.wait_closed()
    await stack.empty()


async def _silent(
    stack: Stack, ingress: IngressProcess, what: str
) -> tuple[asyncio.StreamReader, asyncio.StreamWriter, dict[str, Any]]:
    """A client that has said nothing for so long that it has no slot, and its `hello`."""
    reader, writer = await asyncio.open_connection(HOST, ingress.port)
    hello = json.loads(await reader.readline())
    await until(lambda: stack.client.zcard("px:{0}:adm") == 0, what=what)
    return reader, writer, hello


async def test_an_ingress_that_runs_out_of_files_says_so_and_serves_on(stack: Stack) -> None:
    stack.worker()
    ingress = stack.ingress(max_num_streams=200)
    open_files = ingress.num_open_files
    resource.prlimit(ingress.pid, resource.RLIMIT_NOFILE, (2 * open_files + 40, 2 * open_files + 40))
    clients = [await asyncio.open_connection(HOST, ingress.port) for _ in range(2 * open_files + 40)]
    firsts = await asyncio.gather(*(reader.read(1) for reader, _ in clients), return_exceptions=True)
    served = [client for client, first in zip(clients, firsts, strict=True) if first == b"{"]
    assert 0 < len(served) < len(clients)
    await until(lambda: "out of file descriptors" in ingress.log_text(), what="the sentence")
    reader, writer = served[-1]
    writer.write(b'{"type":"close"}\n')
    assert json.loads((await reader.read()).splitlines()[-1])["is_final"]
    for _, writer in clients:
        writer.close()
        with suppress(OSError):
            await writer.wait_closed()
    await stack.empty()


async def test_the_cluster_is_full_over_all_its_ingresses(stack: Stack) -> None:
    stack.worker()
    first = stack.ingress("i-1", max_num_streams=3)
    second = stack.ingress("i-2", max_num_streams=3)
    streams = [
        await connect(url, timeouts=TIMEOUTS) for url in (first.tcp_url, second.ws_url, second.tcp_url)
    ]
    assert len({stream.stream_id for stream in streams}) == 3
    for url in (first.ws_url, second.tcp_url):
        with pytest.raises(ServerError) as caught:
            await connect(url, timeouts=TIMEOUTS)
        assert caught.value.code == "no_free_stream"
        assert caught.value.message == "No free streaming state available."
    assert first.status()["connected_streams"] == second.status()["connected_streams"] == 3
    await streams.pop().close()

    async def try_again() -> bool:
        try:
            streams.append(await connect(first.tcp_url, timeouts=TIMEOUTS))
        except ServerError:
            return False
        return True

    await until(try_again, what="a free place")
    for stream in streams:
        await stream.close()
    await stack.empty()


async def test_a_missing_worker_is_told_apart(stack: Stack) -> None:
    ingress = stack.ingress(claim_timeout_ms=500)
    with pytest.raises(ServerError) as caught:
        await connect(ingress.tcp_url, timeouts=TIMEOUTS)
    assert caught.value.code == "no_worker"
    worker = stack.worker(lease_ms=120_000)
    # Without options, the stream begins with its audio: when the worker can claim it no more.
    async with await connect(ingress.tcp_url, resume=False, timeouts=TIMEOUTS) as stream:
        worker.send(signal.SIGSTOP)
        await stream.send(noise(1.0))
        with pytest.raises(ServerError) as caught:
            await stream.final()
        assert caught.value.code == "no_worker"
        worker.send(signal.SIGCONT)
    await stack.empty()


async def test_a_client_is_not_silent_while_its_ingress_stands_still(stack: Stack) -> None:
    """A process that goes on finds its timers over before it reads what clients have sent meanwhile."""
    stack.worker()
    ingress = stack.ingress(idle_timeout_s=5)
    reader, writer = await asyncio.open_connection(HOST, ingress.port)
    async with asyncio.timeout(90):
        assert json.loads(await reader.readline())["type"] == "hello"
        second = b'{"type":"audio","samples":[' + b"0.1," * 15999 + b"0.1]}\n"
        writer.write(second)
        await writer.drain()
        ingress.send(signal.SIGSTOP)
        writer.write(second)
        await asyncio.sleep(6)  # longer than a client may be silent
        ingress.send(signal.SIGCONT)
        writer.write(second + b'{"type":"close"}\n')
        messages = [json.loads(line) async for line in reader]
    writer.close()
    assert [message["code"] for message in messages if message["type"] == "error"] == []
    assert messages[-1]["is_final"]
    assert messages[-1]["audio_ack_samples"] == 48_000
    await stack.empty()


async def test_a_client_that_leaves_without_final_leaves_nothing_behind(stack: Stack) -> None:
    stack.worker()
    ingress = stack.ingress()
    for hard in (False, True):
        reader, writer = await asyncio.open_connection(HOST, ingress.port)
        await reader.readline()
        writer.write(b'{"type":"audio","samples":[' + b"0.1," * 95_999 + b"0.1]}\n")
        await reader.readline()
        if hard:
            writer.transport.abort()
        writer.close()
        await asyncio.gather(writer.wait_closed(), return_exceptions=True)
    await stack.empty()
    assert ingress.status()["connected_streams"] == 0


async def test_a_fault_of_one_client_is_no_other_clients(stack: Stack) -> None:
    stack.worker()
    ingress = stack.ingress()
    pcm = noise(3.0, seed=5)
    async with asyncio.TaskGroup() as tasks:
        good = tasks.create_task(transcribe(ingress.ws_url, pcm, 640))
        for line in (
            b"{\n",
            b"\xff\n",
            b'{"type":"audio","data":"AA=="}\n',
            b"x" * 2_000_000,
            b"\0" * 5000 + b"\n",
        ):
            reader, writer = await asyncio.open_connection(HOST, ingress.port)
            await reader.readline()
            writer.write(b'{"type":"audio","samples":[0,0,0,0]}\n' + line)
            async with asyncio.timeout(90):
                answers = (await reader.read()).splitlines()
            assert json.loads(answers[-1])["type"] == "error"
            writer.close()
            await asyncio.gather(writer.wait_closed(), return_exceptions=True)
    assert good.result()[-1].text == expected_text(pcm)
    await stack.empty()


async def test_lost_pubsub_messages_are_caught_up(stack: Stack) -> None:
    stack.worker()
    ingress = stack.ingress()
    pcm = noise(8.0, seed=3)
    async with await connect(ingress.ws_url, timeouts=TIMEOUTS) as stream, asyncio.TaskGroup() as tasks:
        collecting = tasks.create_task(collect(stream))
        for index, at in enumerate(range(0, len(pcm), 5120)):
            await stream.send(pcm[at : at + 5120])
            if index % 5 == 2:
                stack.client.execute_command("CLIENT", "KILL", "TYPE", "pubsub")
            await asyncio.sleep(0.02)
        await stream.finish()
    results = collecting.result()
    check_gapless(results)
    assert results[-1].text == expected_text(pcm)


async def test_every_connection_to_redis_is_cut_again_and_again(own_stack: Stack) -> None:
    own_stack.worker()
    ingress = own_stack.ingress()
    pcm = noise(8.0, seed=4)
    async with await connect(ingress.tcp_url, timeouts=TIMEOUTS) as stream, asyncio.TaskGroup() as tasks:
        collecting = tasks.create_task(collect(stream))
        for index, at in enumerate(range(0, len(pcm), 5120)):
            await stream.send(pcm[at : at + 5120])
            if index % 10 == 4:
                own_stack.client.execute_command("CLIENT", "KILL", "TYPE", "normal", "SKIPME", "yes")
                own_stack.client.execute_command("CLIENT", "KILL", "TYPE", "pubsub")
            await asyncio.sleep(0.02)
        await stream.finish()
    results = collecting.result()
    check_gapless(results)
    assert results[-1].text == expected_text(pcm)
    await own_stack.empty()


async def test_dead_redis_is_told_apart(own_server: EmbeddedRedis, own_stack: Stack) -> None:
    own_stack.worker()
    ingress = own_stack.ingress(redis_timeout_ms=500)
    own_server.stop()
    with pytest.raises(ServerError) as caught:
        await connect(ingress.tcp_url, timeouts=TIMEOUTS)
    assert caught.value.code == "redis_unavailable"
    assert ingress.status()["code"] == "redis_unavailable"
    assert ingress.running


async def test_two_ingresses_with_differing_limits_do_not_start(stack: Stack, tmp_path: Path) -> None:
    stack.ingress("i-1", max_num_streams=3)
    other = IngressProcess(stack.url, "i-2", tmp_path / "other.log", max_num_streams=4)
    with other:
        assert other.wait() == 2
        assert "--max-num-streams is 4 here, and the running cluster has 3" in other.log_text()


async def test_ingresses_share_their_ports(stack: Stack) -> None:
    stack.worker()
    first = stack.ingress("i-1")
    stack.ingress("i-2", port=first.port, ws_port=first.ws_port, status_port=first.status_port)
    pcm = noise(0.5)
    async with asyncio.TaskGroup() as tasks:
        runs = [tasks.create_task(transcribe(first.ws_url, pcm)) for _ in range(20)]
    assert {run.result()[-1].text for run in runs} == {expected_text(pcm)}
    await stack.empty()


async def test_a_taken_port_is_said_in_one_line(stack: Stack, tmp_path: Path) -> None:
    with socket.socket() as taken:
        taken.bind((HOST, 0))
        taken.listen()
        port = taken.getsockname()[1]
        with IngressProcess(stack.url, "i-1", tmp_path / "i.log", port=port) as process:
            assert process.wait() == 1
            assert "cannot start" in process.log_text()
            assert "Traceback" not in process.log_text()


async def test_a_redis_that_stands_still_for_a_while_costs_nothing(own_stack: Stack) -> None:
    own_stack.worker()
    ingress = own_stack.ingress()
    pcm = noise(6.0, seed=9)
    async with await connect(ingress.tcp_url, timeouts=TIMEOUTS) as stream, asyncio.TaskGroup() as tasks:
        collecting = tasks.create_task(collect(stream))
        for index, at in enumerate(range(0, len(pcm), 5120)):
            await stream.send(pcm[at : at + 5120])
            if index == 10:
                own_stack.client.execute_command("CLIENT", "PAUSE", 1500, "ALL")
            await asyncio.sleep(0.03)
        await stream.finish()
    results = collecting.result()
    check_gapless(results)
    assert results[-1].text == expected_text(pcm)
    await own_stack.empty()


async def talk_on(stream: Stream) -> None:
    """Send audio for a while, as long as the stream takes it."""
    for _ in range(100):
        await stream.send(noise(0.5))
        await asyncio.sleep(0.1)


async def test_a_redis_that_forgot_everything_is_a_typed_error(
    own_server: EmbeddedRedis, own_stack: Stack
) -> None:
    own_stack.worker()
    ingress = own_stack.ingress()
    async with await connect(ingress.tcp_url, timeouts=TIMEOUTS) as stream:
        await stream.send(noise(1.0))
        await anext(stream.results())
        own_stack.client.flushall()
        with pytest.raises(ServerError) as caught:
            await talk_on(stream)
        assert caught.value.code == "stream_lost"
    assert ingress.running
    pcm = noise(1.0)
    await until(lambda: own_stack.client.zscore("px:{0}:workers", "w-1") is not None, what="the worker")
    assert (await transcribe(ingress.ws_url, pcm))[-1].text == expected_text(pcm)


@pytest.mark.slow
async def test_redis_that_stays_away_fails_its_streams_and_no_process(
    own_server: EmbeddedRedis, own_stack: Stack
) -> None:
    own_stack.worker()
    ingress = own_stack.ingress(redis_timeout_ms=500)
    async with await connect(ingress.tcp_url, timeouts=SEES_ITS_END) as stream:
        await stream.send(noise(1.0))
        await anext(stream.results())
        own_server.stop()
        await stream.send(noise(1.0))
        await stream.finish()
        with pytest.raises(ServerError) as caught:
            await stream.final()
        assert caught.value.code == "redis_unavailable"
    assert ingress.running


async def test_hundreds_of_clients_come_and_go_at_once(stack: Stack) -> None:
    stack.worker(worker_max_streams=400)
    ingress = stack.ingress(max_num_streams=400)
    audio = b'{"type":"audio","samples":[' + b"0.1," * 799 + b"0.1]}\n"

    async def come() -> asyncio.StreamWriter:
        reader, writer = await asyncio.open_connection(HOST, ingress.port)
        async with asyncio.timeout(90):
            assert json.loads(await reader.readline())["type"] == "hello"
        writer.write(audio)
        await writer.drain()
        return writer

    async with asyncio.TaskGroup() as tasks:
        coming = [tasks.create_task(come()) for _ in range(300)]
    await until(lambda: stack.client.xlen("px:{0}:new") == 300, what="all streams")
    for task in coming:
        task.result().transport.abort()
    await stack.empty()
    warnings = [line for line in ingress.log_text().splitlines() if " WARNING " in line]
    assert [line for line in warnings if "--auth-keys-file" not in line] == []
    assert ingress.status()["connected_streams"] == 0
