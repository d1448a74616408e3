"""The deadlines of a connection."""

from __future__ import annotations

import asyncio
from typing import cast

import pytest

from ingress.sockets.deadlines import Deadline, Deadlines, ProgressDeadline, SilenceDeadline
from ingress.sockets.peer import Peer
from tests.waiting import until

pytestmark = pytest.mark.one_loop


class _Client:
    """The part of a `Peer` that a deadline looks at."""

    def __init__(self, silent_s: float = 0.0, acked_bytes: int = 0) -> None:
        self.silent_s = silent_s
        self.acked_bytes = acked_bytes

    def peer(self) -> Peer:
        return cast(Peer, self)


async def test_a_deadline_passes_once_and_only_if_it_runs() -> None:
    passed: list[str] = []
    kept, stopped, begun_again = Deadline(0.02), Deadline(0.02), Deadline(0.02)
    kept.start(lambda: passed.append("kept"))
    stopped.start(lambda: passed.append("stopped"))
    stopped.stop()
    begun_again.start(lambda: passed.append("forgotten"))
    begun_again.start(lambda: passed.append("begun again"))
    await until(lambda: len(passed) >= 2)
    await asyncio.sleep(0.1)
    # Each gets its own grace where the loop stands still, so the order is not sure.
    assert sorted(passed) == ["begun again", "kept"]
    kept.stop()


async def test_silence_ends_where_the_client_is_heard() -> None:
    client = _Client()
    passed = asyncio.Event()
    deadline = SilenceDeadline(0.02, client.peer())
    deadline.start(passed.set)
    await asyncio.sleep(0.1)
    assert not passed.is_set()
    client.silent_s = 0.02
    async with asyncio.timeout(60):
        await passed.wait()


async def test_no_silence_is_too_long_where_the_time_is_0() -> None:
    passed: list[bool] = []
    SilenceDeadline(0.0, _Client(1e9).peer()).start(lambda: passed.append(True))
    await asyncio.sleep(0.02)
    assert passed == []


async def test_a_client_that_reads_a_little_now_and_then_is_not_stuck() -> None:
    client = _Client()
    passed: list[int] = []
    deadline = ProgressDeadline(2.0, lambda: client.acked_bytes)
    deadline.start(lambda: passed.append(client.acked_bytes))
    for _ in range(10):
        client.acked_bytes += 1
        await asyncio.sleep(0.3)
    assert passed == []
    async with asyncio.timeout(60):
        while not passed:  # noqa: ASYNC110 - the deadline sets no event
            await asyncio.sleep(0.005)
    assert passed == [10]


async def test_all_of_them_stop_at_once() -> None:
    passed: list[str] = []
    deadlines = Deadlines(
        _Client(1e9).peer(),
        lambda: 0.0,
        begin_s=0.01,
        unread_s=0.01,
        refused_s=0.01,
        silent_s=0.01,
        audio_s=0.01,
    )
    deadlines.audio.start(lambda: passed.append("audio"))
    deadlines.begin.start(lambda: passed.append("begin"))
    deadlines.unread.start(lambda: passed.append("unread"))
    deadlines.refused.start(lambda: passed.append("refused"))
    deadlines.silent.start(lambda: passed.append("silent"))
    deadlines.stop()
    await asyncio.sleep(0.05)
    assert passed == []
