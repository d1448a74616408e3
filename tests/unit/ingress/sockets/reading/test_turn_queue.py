"""What is no live stream has turns: in order, few at a time, for a share of the time."""

from __future__ import annotations

import asyncio
from collections.abc import Callable

import pytest

from ingress.sockets.turns import AUDIO_S, BURST_S, OPENING_S, Turns
from tests.ingress_harness import wait_until


class _Clock:
    """A time that passes as the test says, for the thread and beside it."""

    def __init__(self) -> None:
        self.now_s = self.cpu_s = 0.0

    def work(self, seconds: float) -> None:
        self.now_s += seconds
        self.cpu_s += seconds


class _Loop:
    """Notes what is to be called when."""

    def __init__(self) -> None:
        self.calls: list[tuple[float, Callable[[], None]]] = []

    def call_soon(self, call: Callable[[], None]) -> None:
        self.calls.append((0.0, call))

    def call_later(self, delay_s: float, call: Callable[[], None]) -> _Loop:
        self.calls.append((delay_s, call))
        return self

    def cancel(self) -> None:
        """Cancel what is to be called, as the handle of its timer does."""
        self.calls.clear()

    def run(self, clock: _Clock) -> float:
        """Run the one call that there is, in its time; returns how long that took to come."""
        ((delay_s, call),) = self.calls
        self.calls.clear()
        clock.now_s += delay_s
        call()
        return delay_s


@pytest.fixture
def loop(monkeypatch: pytest.MonkeyPatch) -> _Loop:
    loop = _Loop()
    monkeypatch.setattr("ingress.sockets.turns.asyncio.get_running_loop", lambda: loop)
    return loop


def _turns(clock: _Clock, share: float) -> Turns:
    return Turns(share, now_s=lambda: clock.now_s, cpu_s=lambda: clock.cpu_s)


def test_a_quiet_ingress_has_a_turn_at_once() -> None:
    clock = _Clock()
    turns = _turns(clock, 0.1)
    assert turns.at_once(lambda: clock.work(2 * BURST_S))
    assert not turns.at_once(lambda: None)
    clock.now_s += 3.0
    assert turns.at_once(lambda: None)


def test_nobody_overtakes_who_waits(loop: _Loop) -> None:
    clock, heard = _Clock(), list[str]()
    turns = _turns(clock, 0.1)
    turns.ask(lambda: heard.append("first"))
    turns.ask(lambda: heard.append("second"))
    assert not turns.at_once(lambda: heard.append("third"))
    assert turns.num_waiting == 2
    loop.run(clock)
    assert heard == ["first", "second"]
    assert not loop.calls
    assert turns.at_once(lambda: heard.append("third"))


def test_a_round_is_short_and_who_asks_again_waits_for_the_next(loop: _Loop) -> None:
    clock, heard = _Clock(), list[int]()
    turns = _turns(clock, 0.1)

    def again(number: int) -> None:
        heard.append(number)
        clock.work(0.0004)
        turns.ask(lambda: again(number))

    for number in range(10):
        turns.ask(lambda number=number: again(number))  # type: ignore[misc]
    loop.run(clock)
    assert heard == [0, 1, 2]
    loop.run(clock)
    assert heard == [0, 1, 2, 3, 4, 5]
    one = _turns(clock, 0.1)
    one.ask(lambda: one.ask(lambda: None))
    loop.calls = loop.calls[1:]
    loop.run(clock)
    assert one.num_waiting == 1


@pytest.mark.parametrize("share", [0.1, 0.5])
@pytest.mark.parametrize("behind_s", [0.0, 0.002])
def test_crowds_have_their_share_however_many_they_are(loop: _Loop, share: float, behind_s: float) -> None:
    clock = _Clock()
    turns = _turns(clock, share)
    used_s = 0.0

    def again() -> None:
        nonlocal used_s
        used_s += 0.0005 + behind_s
        clock.work(0.0005)
        turns.charge(behind_s)
        turns.ask(again)

    for _ in range(100):
        turns.ask(again)
    while clock.now_s < 100:
        loop.run(clock)
    assert used_s - BURST_S == pytest.approx(share * 100, rel=0.1)


def _seconds_to_open(loop: _Loop, num_connections: int, *, begins_after_s: float | None) -> float:
    """Return how long a crowd waits that comes at once, each of which costs a millisecond in all.

    begins_after_s: from its turn until a stream begins on it, which most is waiting; None where none begins.
    """
    clock = _Clock()
    turns = _turns(clock, 0.1)
    begins: list[float] = []
    num_opened = 0

    def open_one() -> None:
        nonlocal num_opened
        num_opened += 1
        clock.work(0.0002)
        turns.charge(OPENING_S)
        if begins_after_s is not None:
            begins.append(clock.now_s + begins_after_s)

    for _ in range(num_connections):
        turns.ask(open_one)
    while num_opened < num_connections:
        ((delay_s, _),) = loop.calls
        if begins and begins[0] <= clock.now_s + delay_s:
            clock.now_s = max(clock.now_s, begins.pop(0))
            clock.work(0.0008)
            turns.began(tls=False)
        else:
            loop.run(clock)
    return clock.now_s


def test_clients_whose_streams_begin_do_not_wait_for_a_share(loop: _Loop) -> None:
    """A crowd of clients comes in as fast as it is served; who begins no stream has the share."""
    served_s = 5000 * 0.001
    assert _seconds_to_open(loop, 5000, begins_after_s=0.05) == pytest.approx(served_s, rel=0.2)
    loop.calls.clear()
    share_s = (5000 * (0.0002 + OPENING_S) - BURST_S) / 0.1
    assert _seconds_to_open(loop, 5000, begins_after_s=None) == pytest.approx(share_s, rel=0.1)


def test_audio_that_streams_take_pays_for_its_turn_and_for_nothing_else(loop: _Loop) -> None:
    """Recordings come in as fast as they are taken."""
    clock = _Clock()
    turns = _turns(clock, 0.1)
    audio_s = 0.0

    def recording() -> None:
        nonlocal audio_s
        audio_s += 8.0
        clock.work(8.0 * AUDIO_S)
        turns.earn(8.0)
        turns.ask(recording)

    turns.ask(recording)
    while clock.now_s < 10:
        loop.run(clock)
    assert audio_s == pytest.approx(10 / AUDIO_S, rel=0.1)
    other = _turns(clock, 0.1)
    assert other.at_once(lambda: other.earn(1_000_000))
    assert other.at_once(lambda: clock.work(1.2 * BURST_S))
    assert not other.at_once(lambda: None)


def test_what_is_given_back_is_no_more_than_a_burst(loop: _Loop) -> None:
    clock = _Clock()
    turns = _turns(clock, 0.1)
    for _ in range(10_000):
        turns.began(tls=True)
    assert turns.at_once(lambda: clock.work(1.2 * BURST_S))
    assert not turns.at_once(lambda: None)
    turns.ask(lambda: None)
    ((delay_s, _),) = loop.calls
    for _ in range(20):
        turns.began(tls=True)  # and its pause ends
    ((after_s, _),) = loop.calls
    assert delay_s > after_s == 0.0


def test_a_pause_is_bounded_whatever_was_charged(loop: _Loop) -> None:
    clock = _Clock()
    turns = _turns(clock, 0.1)
    turns.charge(3600.0)
    turns.ask(lambda: None)
    assert loop.run(clock) == pytest.approx(0.25)


async def test_a_turn_that_fails_keeps_nobody_waiting() -> None:
    failures: list[dict[str, object]] = []
    asyncio.get_running_loop().set_exception_handler(lambda _, context: failures.append(context))
    turns, heard = Turns(), list[str]()

    def fails() -> None:
        raise ZeroDivisionError

    turns.ask(fails)
    turns.ask(lambda: heard.append("next"))
    await wait_until(lambda: heard == ["next"])
    assert isinstance(failures[0]["exception"], ZeroDivisionError)
