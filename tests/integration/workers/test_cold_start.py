"""Workers whose snapshots are no use to each other: a stream goes on from its checkpoint all the same."""

from __future__ import annotations

import signal
from contextlib import ExitStack
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from common.entries import StreamId
from common.messages import Utterance, Word
from common.redis.keys import Keys
from common.streams.assignments import Base
from gpu_worker.cold_start import placed
from gpu_worker.engine.interface import StreamOutput
from tests.servers import raw_client
from tests.stream_client import ClientStream, expected_text, ingress_side, noise
from tests.waiting import until
from tests.worker_process import SHORT_LEASE_MS, WorkerProcess

OTHER = "tests.altered.other_layout_worker"
PCM = noise(12.0, seed=4)
PART = 32_000  # bytes: a second


def start(
    stack: ExitStack, url: str, folder: Path, name: str, module: str = "gpu_worker", *, dies: bool = False
) -> WorkerProcess:
    flags = {"lease_ms": SHORT_LEASE_MS} if dies else {}
    process = WorkerProcess(url, name, folder / f"{name}.log", module=module, replay_seconds=2, **flags)
    return stack.enter_context(process).ready(raw_client(url))


def checkpoint(client: Any, stream: ClientStream) -> int:
    return int(client.hget(stream.keys.meta, "ck_samples") or 0)


def has_checkpoint(client: Any, stream: ClientStream) -> bool:
    return checkpoint(client, stream) > 16_000


def assert_nothing_lost_or_repeated(stream: ClientStream, pcm: bytes) -> None:
    """Words may begin elsewhere, but each chunk's token is there once, and each result once and in order."""
    results = [message for message in stream.sent if message["type"] == "result"]
    assert [result["seq"] for result in results] == list(range(1, len(results) + 1))
    assert [result["is_final"] for result in results] == [False] * (len(results) - 1) + [True]
    assert stream.text.replace(" ", "") == expected_text(pcm).replace(" ", "")
    tokens = [token for result in results for token in result["token_ids"]]
    assert len(tokens) == len(expected_text(pcm).replace(" ", "")) // 2
    acks = [result["audio_ack_samples"] for result in results]
    assert acks == sorted(acks)
    assert acks[-1] == len(pcm) // 2


@pytest.mark.parametrize("how", [signal.SIGKILL, signal.SIGTERM])
async def test_a_worker_of_another_layout_goes_on(
    redis_url: str, tmp_path: Path, how: signal.Signals
) -> None:
    client = raw_client(redis_url)
    with ExitStack() as stack:
        first = start(stack, redis_url, tmp_path, "w1", dies=True)
        async with ingress_side(redis_url) as ingress:
            stream = await ingress.open()
            stream.append(PCM[: 6 * PART])
            await until(lambda: checkpoint(client, stream) > 3 * 16_000, what="a checkpoint in the middle")
            await until(lambda: stream.seq >= 36, what="results behind it")
            if how is signal.SIGTERM:
                first.send(how)  # with a drain of 30 s: the hand-over is for a second signal
            second = start(stack, redis_url, tmp_path, "w2", OTHER)
            first.send(how)
            assert first.wait() in (0, -signal.SIGKILL)
            await until(lambda: stream.epoch == 2, what="the takeover")
            stream.append(PCM[6 * PART :], final=True)
            await ingress.ended(stream)
            assert_nothing_lost_or_repeated(stream, PCM)
            assert "a stream is replayed from the log" in second.log_text()
            assert "Traceback" not in second.log_text()


@pytest.mark.parametrize("parts", [1, 3], ids=["before its first checkpoint", "behind its own checkpoint"])
async def test_the_first_layout_goes_on_behind_the_other_one(
    redis_url: str, tmp_path: Path, parts: int
) -> None:
    client = raw_client(redis_url)
    with ExitStack() as stack:
        first = start(stack, redis_url, tmp_path, "w1", dies=True)
        async with ingress_side(redis_url) as ingress:
            stream = await ingress.open()
            stream.append(PCM[: 4 * PART])
            await until(lambda: checkpoint(client, stream) > 16_000, what="a checkpoint")
            await until(lambda: stream.seq >= 24, what="results behind it")
            second = start(stack, redis_url, tmp_path, "w2", OTHER, dies=True)
            first.send(signal.SIGKILL)
            await until(lambda: stream.epoch == 2, what="the first takeover")
            before, seq = checkpoint(client, stream), stream.seq
            stream.append(PCM[4 * PART : (4 + parts) * PART])
            await until(lambda: stream.seq >= seq + 6 * parts - 2, what="results of the other layout")
            if parts == 1:
                # Its spacing is a second of audio, of which it has had less behind the checkpoint.
                second.send(signal.SIGKILL)
            else:
                await until(lambda: checkpoint(client, stream) > before, what="its own checkpoint")
                second.send(signal.SIGKILL)
            start(stack, redis_url, tmp_path, "w3")
            await until(lambda: stream.epoch == 3, what="the second takeover")
            stream.append(PCM[(4 + parts) * PART :], final=True)
            await ingress.ended(stream)
            assert_nothing_lost_or_repeated(stream, PCM)


async def test_without_the_text_before_it_a_stream_ends_with_an_error(redis_url: str, tmp_path: Path) -> None:
    client = raw_client(redis_url)
    with ExitStack() as stack:
        first = start(stack, redis_url, tmp_path, "w1", dies=True)
        async with ingress_side(redis_url) as ingress:
            stream, other = await ingress.open(), await ingress.open()
            for one in (stream, other):
                one.append(PCM[: 4 * PART])
                await until(partial(has_checkpoint, client, one), what="a checkpoint")
            start(stack, redis_url, tmp_path, "w2", OTHER)
            first.send(signal.SIGSTOP)
            client.delete(Keys().stream(stream.stream).text)
            first.send(signal.SIGKILL)
            for one in (stream, other):
                one.append(PCM[4 * PART :], final=True)
            await ingress.ended(stream, other)
            assert stream.sent[-1]["code"] == "worker_failed"
            assert_nothing_lost_or_repeated(other, PCM)


def test_an_output_is_placed_in_the_whole_stream() -> None:
    output = StreamOutput(
        stream=StreamId(1),
        samples_decoded=2560,
        token_ids=(1,),
        confidence_scores=(0.5,),
        token_frames=(1,),
        text="two",
        last_state="speech",
        turn_detection="running",
        is_final=False,
        is_turn_event=False,
        words=(Word("two", 0.08, 0.16, 0.5),),
        changed=True,
        utterances=(Utterance(1, "two", 0.08, 0.16),),
    )
    moved = placed(output, Base(samples=32_000, text_chars=3, utterances=4), "one")
    assert (moved.samples_decoded, moved.token_frames, moved.text) == (34_560, (26,), "one two")
    assert moved.words == (Word("two", 2.08, 2.16, 0.5),)
    assert moved.utterances == (Utterance(5, "two", 2.08, 2.16),)
    assert placed(output, Base(samples=32_000), "").text == "two"
