"""What a key has used on this ingress and on others, and when it may have more."""

from __future__ import annotations

from unittest.mock import Mock

import pytest

from common.auth.api_key import KeyId
from common.auth.keys_file import KeyRecord
from common.errors import ErrorCode, RedisUnavailable, StreamError
from common.streams.key_usage import Bound
from ingress.auth.client import ANYBODY, Client
from ingress.auth.door import Door
from ingress.auth.guard import OverLimit
from ingress.auth.key_guard import KeyGuard

pytestmark = pytest.mark.one_loop

RECORD = KeyRecord(key_id=KeyId("abcdefgh"), digest="", name="desk", audio_s_per_day=100)
CLIENT = Client(RECORD)


class Usage:
    """What Redis counts, of which other ingresses have their part."""

    def __init__(self) -> None:
        self.bound: Bound | None = None
        self.today_s = 0.0
        self.last = ""
        self.reports: list[tuple[int, float]] = []
        self.away = False
        self.deaf = False  # it counts, and its answers are lost

    async def enter(self, record: KeyRecord, num_before: int, num_new: int) -> Bound | None:
        return self.bound

    async def report(self, key: KeyId, num_streams: int, audio_s: float, once: str) -> float:
        if self.away:
            raise RedisUnavailable
        self.reports.append((num_streams, audio_s))
        if once != self.last:
            self.last = once
            self.today_s += audio_s
        if self.deaf:
            raise RedisUnavailable
        return self.today_s


class At:
    """A guard at a time of the day."""

    def __init__(self, unix_s: float) -> None:
        self.usage = Usage()
        self.door = Mock(spec=Door)
        self.guard = KeyGuard(self.door, self.usage, unix_s=lambda: unix_s)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("bound", "unix_s", "retry_after_s"),
    [
        (Bound.STREAMS, 0.0, 5),
        (Bound.NEW, 119.5, 1),
        (Bound.NEW, 60.0, 61),
        (Bound.AUDIO, 2 * 86_400 - 90.0, 91),
    ],
)
async def test_a_key_at_a_limit_is_told_when_it_may_have_more(
    bound: Bound, unix_s: float, retry_after_s: int
) -> None:
    at = At(unix_s)
    at.usage.bound = bound
    with pytest.raises(OverLimit) as raised:
        await at.guard.enter(CLIENT, 1)
    assert raised.value.retry_after_s == retry_after_s


async def test_audio_of_this_ingress_and_of_others_ends_with_the_day_s_bound() -> None:
    at = At(0.0)
    await at.guard.enter(CLIENT, 1)
    at.guard.heard(CLIENT, 60.0)
    at.guard.check_audio(CLIENT)
    await at.guard._report(everything=False)
    at.guard.heard(CLIENT, 39.0)
    at.guard.check_audio(CLIENT)
    at.usage.today_s += 30.0  # at another ingress, as the next report tells
    at.guard.check_audio(CLIENT)
    await at.guard._report(everything=False)
    with pytest.raises(OverLimit, match="as much audio today"):
        at.guard.check_audio(CLIENT)
    assert at.usage.reports == [(1, 60.0), (1, 39.0)]


async def test_audio_that_could_not_be_reported_counts_all_the_same() -> None:
    at = At(0.0)
    await at.guard.enter(CLIENT, 1)
    at.guard.heard(CLIENT, 100.0)
    at.usage.away = True
    await at.guard._report(everything=False)
    with pytest.raises(OverLimit):
        at.guard.check_audio(CLIENT)


async def test_audio_whose_report_was_not_answered_is_counted_once() -> None:
    at = At(0.0)
    await at.guard.enter(CLIENT, 1)
    at.usage.deaf = True
    for _ in range(3):
        at.guard.heard(CLIENT, 10.0)
        await at.guard._report(everything=False)
    assert at.usage.reports == [(1, 10.0)] * 3
    at.guard.heard(CLIENT, 69.0)
    at.guard.check_audio(CLIENT)
    at.usage.deaf = False
    for _ in range(2):
        await at.guard._report(everything=False)
    assert at.usage.reports[3:] == [(1, 10.0), (1, 89.0)]
    assert at.usage.today_s == 99.0
    at.guard.check_audio(CLIENT)
    at.guard.heard(CLIENT, 1.0)
    with pytest.raises(OverLimit):
        at.guard.check_audio(CLIENT)


async def test_without_a_bound_there_is_nothing_to_check() -> None:
    at = At(0.0)
    free = Client(KeyRecord(key_id=KeyId("free0000"), digest="", name="n"))
    await at.guard.enter(free, 1)
    at.guard.heard(free, 1e9)
    for client in (free, ANYBODY, None):
        at.guard.check_audio(client)


async def test_a_key_that_ended_since_its_holder_came_in_gets_no_stream() -> None:
    """A recording begins with the first byte of its body, long after the head with the key."""
    at = At(0.0)
    at.door.still_admits.return_value = False
    with pytest.raises(StreamError) as refused:
        await at.guard.enter(CLIENT, 1)
    assert refused.value.code is ErrorCode.UNAUTHORIZED
    at.door.still_admits.return_value = True
    await at.guard.enter(CLIENT, 1)
    await at.guard._report(everything=True)
    assert at.usage.reports == [(1, 0.0)]
