"""The one line of the log at a stream's end."""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import Any

import pytest

from common.entries import Line, LineKind, StreamId, encode_error, encode_record
from common.errors import ErrorCode, StreamError
from common.messages import Audio
from common.monitoring.metrics import IngressMetrics
from common.options import StreamOptions
from common.redis.keys import Keys
from ingress.backplane import Caller
from ingress.streams.redis_link import LinkContext, Place, RedisLink
from tests.fake_backplane import some_result

pytestmark = pytest.mark.one_loop

STREAM = StreamId(5)


class _Deaf:
    """Listens to nothing."""

    undecoded_s = 0.0

    def __getattr__(self, name: str) -> Callable[..., None]:
        return lambda *_, **__: None


@pytest.fixture
def ends(caplog: pytest.LogCaptureFixture) -> Callable[[], list[dict[str, Any]]]:
    caplog.set_level(logging.INFO, "ingress.streams.account")
    return lambda: [vars(record) | {"text": record.getMessage()} for record in caplog.records]


def admitted(metrics: IngressMetrics | None = None) -> RedisLink:
    def start(coroutine: Any, name: str) -> None:
        coroutine.close()

    context = LinkContext(
        lambda link, action: None,
        lambda link: None,
        start,
        7.0,
        metrics or IngressMetrics(),
        sample_rate=16_000,
        confirm=lambda link: None,
    )
    return RedisLink(context, Keys().stream(STREAM), _Deaf(), "secret", Caller("k1", "desk"))


def begun(sample_rate: int | None = None) -> RedisLink:
    link = admitted()
    link.begin(StreamOptions(sample_rate=sample_rate))
    return link


def line(kind: LineKind, seq: int, body: bytes, *, acked: int = 100) -> Line:
    return Line(kind, STREAM, 1, seq, acked, body)


def spoken(seq: int, text: str) -> bytes:
    return encode_record(some_result(seq, text), 0)


Ends = Callable[[], list[dict[str, Any]]]


async def test_a_final_result_is_told_with_all_that_was_measured(ends: Ends) -> None:
    link = begun(sample_rate=8_000)
    link.append(Audio(bytes(8_000)))
    link.receive(line(LineKind.OWNER, 0, b"w-1"))
    link.receive(line(LineKind.PARTIAL, 1, spoken(1, "")))
    assert not link.account.has_text
    link.receive(line(LineKind.PARTIAL, 2, spoken(2, "hello secret")))
    link.append(Audio(bytes(4_000), final=True))
    link.receive(line(LineKind.FINAL, 3, spoken(3, "hello secret"), acked=6_000))
    link.release()
    (told,) = ends()
    assert (told["stream_id"], told["code"], told["key_name"], told["audio_s"]) == (5, "final", "desk", 0.75)
    assert told["first_text_ms"] is not None
    assert told["final_ms"] is not None
    assert "secret" not in told["text"]
    assert told["text"].startswith(
        "stream ended: final, key desk, 0.75 s of audio at 8000 Hz in pcm16, first"
    )
    assert (told["sample_rate"], told["encoding"]) == (8_000, "pcm16")


async def test_the_code_is_that_of_whoever_ended_it_and_told_once(ends: Ends) -> None:
    worker, service, client, fault = begun(), begun(), begun(), begun()
    worker.receive(line(LineKind.OWNER, 0, b"w-1"))
    worker.receive(line(LineKind.ERROR, 1, encode_error(StreamError(ErrorCode.BAD_OPTION, "no such"))))
    worker.release()
    service.fail(StreamError(ErrorCode.NO_WORKER, "none"))
    service.abandon(keep=False, code="no_worker")
    client.abandon(keep=False)
    client.receive(line(LineKind.FINAL, 1, spoken(1, "")), repair=True)
    fault.abandon(keep=False, code="bad_json")
    assert [told["code"] for told in ends()] == ["bad_option", "no_worker", "client_gone", "bad_json"]
    assert ends()[0]["final_ms"] is None


async def test_a_stream_that_waits_for_its_client_has_not_ended(ends: Ends) -> None:
    comes_back, stays_away = begun(), begun()
    for link in (comes_back, stays_away):
        link.append(Audio(bytes(3_200)))
        link.abandon(keep=True)
    comes_back.taken()
    assert ends() == []
    stays_away.grace_is_over()
    assert [told["code"] for told in ends()] == ["client_gone"]


async def test_a_failed_stream_that_waits_for_its_client_ends_when_that_stays_away(ends: Ends) -> None:
    comes_back, stays_away = admitted(), admitted()
    for link in (comes_back, stays_away):
        link.begin(StreamOptions(resume=True))
        link.fail(StreamError(ErrorCode.NO_WORKER, "none"))
        link.abandon(keep=True, code="no_worker")
    comes_back.taken()
    assert ends() == []
    stays_away.grace_is_over()
    assert [told["code"] for told in ends()] == ["no_worker"]


async def test_a_resumed_stream_counts_its_audio_from_the_beginning(ends: Ends) -> None:
    link = admitted()
    link.adopt(None, StreamOptions(), Place(None), next_sample=48_000, finished=False)
    link.append(Audio(bytes(32_000)))
    link.abandon(keep=False)
    assert ends()[0]["audio_s"] == 4.0


async def test_a_slot_without_a_stream_has_no_line(ends: Ends) -> None:
    metrics = IngressMetrics()
    admitted(metrics).abandon(keep=False)
    assert ends() == []
    assert sum(metrics.streams_ended.values()) == 0


async def test_a_stream_counts_once_over_all_of_its_connections() -> None:
    metrics = IngressMetrics()
    first, second = admitted(metrics), admitted(metrics)
    first.begin(StreamOptions(resume=True))
    first.append(Audio(bytes(32_000)))
    first.abandon(keep=True)
    first.taken()
    assert sum(metrics.streams_ended.values()) == 0
    second.adopt(None, StreamOptions(resume=True), Place(None), next_sample=16_000, finished=False)
    second.append(Audio(bytes(32_000), final=True))
    second.receive(line(LineKind.OWNER, 0, b"w-1"))
    second.receive(line(LineKind.FINAL, 1, spoken(1, ""), acked=32_000))
    second.release()
    assert {code: count for code, count in metrics.streams_ended.items() if count} == {"final": 1}
    assert metrics.stream_duration_seconds.sum == 2.0


async def test_the_audio_of_a_stream_that_ended_earlier_is_not_what_its_client_says(ends: Ends) -> None:
    link = admitted()
    link.adopt(None, StreamOptions(), Place(None), next_sample=10**18, finished=True)
    link.receive(line(LineKind.OWNER, 0, b"w-1"))
    link.receive(line(LineKind.FINAL, 1, spoken(1, ""), acked=16_000))
    link.release()
    assert ends()[0]["audio_s"] == 1.0
