"""Redis loses what it had answered for, in part or whole: audio, results, streams and slots."""

from __future__ import annotations

import asyncio
import re
import signal
from contextlib import ExitStack
from functools import partial
from pathlib import Path
from typing import Any, Final
from urllib.request import urlopen

import pytest

from common.entries import LineKind
from common.errors import StreamLost
from common.messages import Finalize
from parakeet.client import ServerError, connect
from parakeet.serve.embedded_redis import EmbeddedRedis
from tests.ports import free_ports
from tests.servers import raw_client
from tests.stack import SEES_ITS_END, TIMEOUTS, Stack, check_gapless, collect, transcribe
from tests.stream_client import ClientStream, expected_text, ingress_side, noise, num_unacked
from tests.waiting import until
from tests.worker_process import SHORT_LEASE_MS, WorkerProcess

# One command, so that nothing is written, and no key goes, between the first and the last.
_DUMP_ALL: Final = """
local found = {}
for _, key in ipairs(redis.call('KEYS', 'px:*')) do
  found[#found + 1] = key
  found[#found + 1] = redis.call('DUMP', key)
end
return found
"""


def _moment_of(client: Any) -> dict[bytes, bytes]:
    """All keys as they are."""
    flat = client.eval(_DUMP_ALL, 0)
    return dict(zip(flat[::2], flat[1::2], strict=True))


def _restore(client: Any, moment: dict[bytes, bytes]) -> None:
    """What a server does that comes back without what came after `moment`."""
    pipe = client.pipeline()
    pipe.flushall()
    for key, dump in moment.items():
        pipe.restore(key, 60_000, dump)
    pipe.execute()


async def test_audio_that_redis_took_and_forgot_is_appended_again(redis_url: str, tmp_path: Path) -> None:
    client = raw_client(redis_url)
    pcm = noise(3.2)
    eighth = len(pcm) // 8
    with ExitStack() as stack:
        dies = WorkerProcess(redis_url, "w1", tmp_path / "w1.log", lease_ms=SHORT_LEASE_MS)
        first = stack.enter_context(dies)
        first.ready(client)
        async with ingress_side(redis_url) as ingress:
            stream = await ingress.open()
            silent = await ingress.open()
            both = (stream, silent)

            async def append(number: int) -> None:
                final = number == 7
                for one in both:
                    one.append(pcm[number * eighth : (number + 1) * eighth], final=final and one is silent)
                await until(lambda: all(one.appender.idle for one in both), what="the commit")

            for number in range(5):
                await append(number)
            await until(lambda: all(one.seq >= 9 for one in both), what="results")
            first.send(signal.SIGKILL)
            # A server that dies may come back as it was a moment ago, however it had answered since.
            moment = _moment_of(client)
            for number in range(5, 8):
                await append(number)
            # Begun after that moment: nothing of it is left.
            young = await ingress.open()
            young.append(pcm[:eighth])
            await until(lambda: young.appender.idle, what="the commit")
            _restore(client, moment)
            # Five entries, or fewer where a snapshot had fallen due and the entries before it were trimmed.
            kept = [client.xlen(one.keys.audio) for one in both]
            assert max(kept) <= 5
            client.client_kill_filter(_type="normal", skipme=True)
            await until(
                lambda: [client.xlen(one.keys.audio) for one in both] == [num + 3 for num in kept],
                what="the audio",
            )
            # Three of each, and of the young one its creation and its audio.
            await until(lambda: ingress.log.num_restored >= 8, what="the count")
            assert ingress.redis.num_losses >= 1
            stack.enter_context(WorkerProcess(redis_url, "w2", tmp_path / "w2.log"))
            stream.append(b"", final=True)
            young.append(pcm[eighth:], final=True)
            await ingress.ended(*both, young)
            assert [one.text for one in (*both, young)] == [expected_text(pcm)] * 3
            assert [one.epoch for one in both] == [2, 2]
            assert young.epoch > 2, "beyond the owners that Redis may have forgotten"


async def test_results_that_redis_took_and_forgot_are_written_again(redis_url: str, tmp_path: Path) -> None:
    """Their owner lives, and would go on behind a gap: whoever had not heard of them could not."""
    client = raw_client(redis_url)
    pcm = noise(3.2)
    quarter = len(pcm) // 4
    (metrics_port,) = free_ports(1)
    flags: dict[str, Any] = {"redis_loss_ms": 60_000, "metrics_port": metrics_port}
    with WorkerProcess(redis_url, "w1", tmp_path / "w1.log", **flags) as worker:
        worker.ready(client)
        async with ingress_side(redis_url) as ingress:
            going_on, silent = streams = [await ingress.open() for _ in range(2)]

            def numbers(stream: ClientStream) -> list[int]:
                entries = client.xrange(stream.keys.results, "1-1")
                return [int(entry_id.split(b"-")[1]) for entry_id, _ in entries]

            async def append(pcm: bytes, results: int) -> None:
                for stream in streams:
                    stream.append(pcm)
                await until(lambda: all(stream.seq >= results for stream in streams), what="results")
                await until(lambda: all(num_unacked(client, one) <= 1 for one in streams), what="acks")

            await append(pcm[:quarter], 5)
            moment = _moment_of(client)
            before = [numbers(stream) for stream in streams]
            await append(pcm[quarter : 2 * quarter], 10)
            had = [numbers(stream) for stream in streams]
            unacked = [num_unacked(client, stream) for stream in streams]
            _restore(client, moment)
            assert [numbers(stream) for stream in streams] == before != had
            client.client_kill_filter(_type="normal", skipme=True)
            # Nobody says anything any more.
            await until(lambda: [numbers(stream) for stream in streams] == had, what="the results")
            # Were they not acknowledged, too, the next owner would count a death over this audio.
            await until(lambda: [num_unacked(client, one) for one in streams] == unacked, what="the acks")
            restored = "parakeet_worker_results_restored_total"
            await until(lambda: _metric(metrics_port, restored) == 10, what="the count")

            def num_told() -> int:
                return sum(map(int, re.findall(r"results, they are written again: (\d+)", worker.log_text())))

            await until(lambda: num_told() == 10, what="the warning")
            going_on.append(pcm[2 * quarter :], final=True)
            silent.append(b"", final=True)
            await ingress.ended(*streams)
            assert going_on.text == expected_text(pcm)
            assert silent.text == expected_text(pcm[: 2 * quarter])
            for stream in streams:
                assert stream.epoch == 1
                assert numbers(stream) == list(range(1, stream.seq + 1))


async def test_a_finalize_that_redis_forgot_to_have_delivered_is_answered_once(
    redis_url: str, tmp_path: Path
) -> None:
    """Its owner, which lives, is given the audio and the finalize again."""
    client, pcm = raw_client(redis_url), noise(1.6)
    half = len(pcm) // 2
    with WorkerProcess(redis_url, "w1", tmp_path / "w1.log", redis_loss_ms=60_000) as worker:
        worker.ready(client)
        async with ingress_side(redis_url) as ingress:
            stream = await ingress.open()

            def answers() -> set[int]:
                return {line.seq for line in stream.lines if line.kind is LineKind.FINALIZED}

            await until(lambda: stream.epoch == 1, what="an owner")
            moment = _moment_of(client)
            stream.append(pcm[:half])
            stream.appender.mark(Finalize())
            await until(lambda: len(answers()) == 1 and num_unacked(client, stream) == 0, what="the answer")
            _restore(client, moment)
            client.client_kill_filter(_type="normal", skipme=True)
            await until(lambda: client.xlen(stream.keys.audio) == 2, what="the audio")
            stream.append(pcm[half:], final=True)
            await ingress.ended(stream)
            assert len(answers()) == 1
            assert stream.epoch == 1


async def test_a_resumption_that_redis_took_and_forgot_holds(stack: Stack) -> None:
    """The record names the ingress before it, and only the secret before it is good."""
    pcm, keep_ms = noise(6.0), 60_000
    third = len(pcm) // 3
    stack.worker(redis_loss_ms=keep_ms)
    ingresses = [stack.ingress(f"i-{number}", redis_loss_ms=keep_ms) for number in range(1, 4)]
    urls = tuple(ingress.tcp_url for ingress in ingresses)
    async with await connect(urls, timeouts=TIMEOUTS) as stream, asyncio.TaskGroup() as tasks:
        collecting = tasks.create_task(collect(stream))
        await stream.send(pcm[:third])
        await until(lambda: stream._last_seq > 5, what="results")
        record, results = (f"px:{{0}}:{stream.stream_id}:{kind}" for kind in "mr")
        moment = _moment_of(stack.client)
        ingresses[0].send(signal.SIGKILL)
        await until(lambda: stream.num_resumptions == 1, what="the resumption")
        await stream.send(pcm[third : 2 * third])
        await until(lambda: stream._last_seq == 25, what="results")
        _restore(stack.client, moment)
        assert stack.client.hget(record, "ingress") == b"i-1"
        stack.client.client_kill_filter(_type="normal", skipme=True)
        await until(lambda: stack.client.hget(record, "ingress") == b"i-2", what="the ingress")
        written = partial(stack.client.xrevrange, results, count=1)
        await until(lambda: written()[0][0] == b"1-25", what="results that are written again")
        # The client comes back with the secret that Redis had forgotten.
        ingresses[1].send(signal.SIGKILL)
        await until(lambda: stream.num_resumptions == 2, what="the next resumption")
        await stream.send(pcm[2 * third :])
        await stream.finish()
    check_gapless(collecting.result())
    assert collecting.result()[-1].text == expected_text(pcm)
    await stack.empty()


async def test_an_owner_whose_successor_redis_forgot_opens_its_streams_anew(
    redis_url: str, tmp_path: Path
) -> None:
    """That one has written its results again, so that the owner can write none behind them."""
    client, pcm = raw_client(redis_url), noise(3.2)
    quarter = len(pcm) // 4
    with WorkerProcess(redis_url, "w1", tmp_path / "w1.log") as worker:
        worker.ready(client)
        async with ingress_side(redis_url) as ingress:
            going_on, ending = streams = [await ingress.open() for _ in range(2)]
            for stream in streams:
                stream.append(pcm[: 2 * quarter])
            for stream in streams:
                await until(lambda of=stream: of.seq >= 9 and num_unacked(client, of) <= 1, what="results")  # type: ignore[misc]
                # Redis runs anew since, and the log has what only the successor can have written.
                client.hset(stream.keys.meta, "run", "before")
                entry_id, fields = client.xrevrange(stream.keys.results, count=1)[0]
                seq = int(entry_id.split(b"-")[1])
                client.xadd(stream.keys.results, {"k": "o", "a": fields[b"a"], "d": "w2", "q": seq}, id="2-0")
                stream.epoch = 2
            going_on.append(pcm[2 * quarter : 3 * quarter])
            ending.append(pcm[2 * quarter :], final=True)
            await until(lambda: going_on.epoch > 2, what="a later owner")
            going_on.append(pcm[3 * quarter :], final=True)
            await ingress.ended(*streams)
            assert [stream.text for stream in streams] == [expected_text(pcm)] * 2
            assert "its last owner was forgotten" in worker.log_text()


async def test_a_stream_that_redis_forgot_is_made_anew_while_its_owner_lives(
    redis_url: str, tmp_path: Path
) -> None:
    """The owner finds its audio gone, and says that the stream is over: of the one that it had."""
    client = raw_client(redis_url)
    pcm = noise(3.2)
    with WorkerProcess(redis_url, "w1", tmp_path / "w1.log") as worker:
        worker.ready(client)
        async with ingress_side(redis_url) as ingress:
            moment = _moment_of(client)
            streams = [await ingress.open() for _ in range(3)]
            for stream in streams:
                stream.append(pcm[: len(pcm) // 2])
            await until(lambda: all(stream.seq >= 6 for stream in streams), what="results")
            _restore(client, moment)
            client.client_kill_filter(_type="normal", skipme=True)
            for stream in streams:
                stream.append(pcm[len(pcm) // 2 :], final=True)
            await ingress.ended(*streams)
            assert [stream.text for stream in streams] == [expected_text(pcm)] * 3
            assert all(stream.epoch > 1 for stream in streams)
        assert worker.running


async def test_a_redis_that_forgot_everything_ends_streams_and_serves_new_ones(
    own_server: EmbeddedRedis, tmp_path: Path
) -> None:
    client = raw_client(own_server.url)
    pcm = noise(1.0)
    with WorkerProcess(own_server.url, "w1", tmp_path / "w1.log") as worker:
        worker.ready(client)
        async with ingress_side(own_server.url) as ingress:
            lost = await ingress.open()
            lost.append(pcm)
            await until(lambda: lost.seq >= 5, what="results")
            client.flushall()
            lost.append(pcm, final=True)
            await until(lambda: lost.failure, what="the failure")
            assert isinstance(lost.failure, StreamLost)
            await until(lambda: client.hget("px:{0}:w:w1", "owned") == b"0", what="its letting go")
            stream = await ingress.open()
            stream.append(pcm, final=True)
            await ingress.ended(stream)
            assert stream.text == expected_text(pcm)
        assert worker.running


@pytest.mark.parametrize("begun_before", [True, False], ids=["live", "being created"])
async def test_a_stream_that_ended_while_redis_was_away_has_no_slot_of_the_one_that_comes_back_empty(
    own_stack: Stack, own_server: EmbeddedRedis, begun_before: bool
) -> None:
    worker = own_stack.worker()
    (metrics_port,) = free_ports(1)
    ingress = own_stack.ingress(
        max_num_streams=1, redis_outage_s=1, redis_loss_ms=0, metrics_port=metrics_port
    )
    async with await connect(ingress.tcp_url, timeouts=SEES_ITS_END) as stream:
        if begun_before:
            await stream.send(noise(0.5))
            await anext(stream.results())
        own_server.send_signal(signal.SIGKILL)
        await until(lambda: own_server.exited() is not None, what="the end of Redis")
        await stream.send(noise(0.5))
        with pytest.raises(ServerError) as told:
            await collect(stream)
        assert told.value.code == "redis_unavailable"
    own_server.start()
    await until(lambda: own_stack.client.zcard("px:{0}:workers") == 1, what="the worker's lease")
    await until(
        lambda: _metric(metrics_port, "parakeet_ingress_streams{") == 0,
        what="the end of the stream",
    )
    await until(lambda: own_stack.client.zcard("px:{0}:adm") == 0, what="the slot")
    assert (await transcribe(ingress.tcp_url, noise(0.5)))[-1].is_final
    for process in (worker, ingress):
        lines = process.log_text().splitlines()
        assert 1 <= sum("does not answer: " in line and "WARNING" in line for line in lines) <= 4, lines
        assert any(" answers again after " in line for line in lines), lines
        assert len([line for line in lines if "WARNING" in line]) < 16, lines
    (given_up,) = [line for line in ingress.log_text().splitlines() if "could not be written" in line] or [""]
    assert "does not answer" in given_up or not begun_before


def _metric(port: int, name: str) -> float:
    """Return the sum of the samples of a process's metrics whose lines begin with `name`."""
    with urlopen(f"http://127.0.0.1:{port}/metrics", timeout=60) as answer:
        lines = answer.read().decode().splitlines()
    return sum(float(line.split()[-1]) for line in lines if line.startswith(name))
