"""What an ingress finds out by itself about streams of which nobody tells."""

from __future__ import annotations

import asyncio
import time
from contextlib import suppress
from types import SimpleNamespace

import pytest

from common.entries import IngressId, StreamId
from common.redis.clients import RedisServers
from common.redis.keys import Keys, StreamKeys
from common.redis.scripts.ownership import SUSPICIOUS_DEATHS
from ingress.streams import watch as stream_watch
from ingress.streams.watch import StreamWatch
from tests.waiting import until

pytestmark = pytest.mark.one_loop

_INGRESS = IngressId("i-1")
_LONG_AGO = -1e9


class _Directory:
    """Every stream is a suspect."""

    async def read(self, stream: StreamId) -> object:
        return SimpleNamespace(ingress=_INGRESS, deaths=SUSPICIOUS_DEATHS)


class _Feed:
    """Reads what was missed, which is news of the stream."""

    def repair(self, link: SimpleNamespace) -> None:
        link.heard_at = asyncio.get_running_loop().time()

    def is_repairing(self, link: SimpleNamespace) -> bool:
        return False


async def _decoded(keys: StreamKeys) -> int:
    return 16_000


def _link(number: int) -> SimpleNamespace:
    """A stream with audio that waits, of which nothing has been heard for long."""
    link = SimpleNamespace(
        stream=StreamId(number),
        begun=True,
        created=True,
        given_up=False,
        created_at=_LONG_AGO,
        worker="w-1",
        keys=Keys(1).stream(StreamId(number)),
        undecoded_s=1.0,
        acknowledged=[],
        ended=False,
        left_at=None,
        waits_for_client=False,
        heard_at=_LONG_AGO,
        progress_at=_LONG_AGO,
        looked_up_at=0.0,
        patience=[],
    )
    link.suspected = link.patience.append
    link.decoded = link.acknowledged.append
    link.waits_for_progress = lambda least_s, now: 0.0
    return link


async def test_every_suspect_is_found_however_many_there_are(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(stream_watch, "WATCH_S", 0.005)
    links = {link.stream: link for link in map(_link, range(1, 301))}
    watch = StreamWatch(
        _Directory(),  # type: ignore[arg-type]
        _Feed(),  # type: ignore[arg-type]
        links,  # type: ignore[arg-type]
        servers=RedisServers.parse(("redis://example",)),
        ingress=_INGRESS,
        decoded=_decoded,
        claim_timeout_s=10.0,
        patience_s=60.0,
    )
    running = asyncio.create_task(watch.run())
    await until(lambda: all(link.patience for link in links.values()), what="the last of them")
    assert max(len(link.patience) for link in links.values()) <= 2, "they take turns"
    assert {samples for link in links.values() for samples in link.acknowledged} == {16_000}
    running.cancel()
    with suppress(asyncio.CancelledError):
        await running


async def test_after_a_standstill_what_came_is_read_before_a_stream_is_given_up(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """An ingress that was stopped has not heard of the workers of its streams."""
    monkeypatch.setattr(stream_watch, "WATCH_S", 0.005)
    monkeypatch.setattr(stream_watch, "REPAIR_S", 0.1)
    log: list[str] = []
    feed, link = _Feed(), _link(1)
    monkeypatch.setattr(feed, "repair", lambda link: log.append("repaired"))
    link.fail = lambda error: log.append(error.code.value)
    link.worker = None
    link.created_at = link.heard_at = link.progress_at = asyncio.get_running_loop().time()
    watch = StreamWatch(
        _Directory(),  # type: ignore[arg-type]
        feed,  # type: ignore[arg-type]
        {link.stream: link},  # type: ignore[dict-item]
        servers=RedisServers.parse(("redis://example",)),
        ingress=_INGRESS,
        decoded=_decoded,
        claim_timeout_s=1.0,
        patience_s=60.0,
    )
    running = asyncio.create_task(watch.run())
    await asyncio.sleep(0)
    time.sleep(stream_watch.STANDSTILL_S + 1)  # noqa: ASYNC251 - the loop is to stand still
    await until(lambda: "no_worker" in log, what="the end of a stream that has no worker")
    assert log[0] == "repaired"
    running.cancel()
    with suppress(asyncio.CancelledError):
        await running
