"""A turn that takes too long, and a process that was suspended in the midst of one."""

from __future__ import annotations

from gpu_worker.hang import HangWatch


class _Clock:
    now = 100.0

    def __call__(self) -> float:
        return self.now


def looks(watch: HangWatch, clock: _Clock, began: float, seconds: float) -> list[bool]:
    """What it says of a turn that began then, at looks every half second."""
    said = []
    for _ in range(int(2 * seconds)):
        watch.rests()
        clock.now += 0.5
        said.append(watch.hangs(clock.now - began))
    return said


def test_a_turn_that_takes_longer_than_its_time_hangs() -> None:
    clock = _Clock()
    watch = HangWatch(0.5, 3.0, clock)
    assert looks(watch, clock, began=100.0, seconds=4) == [False] * 6 + [True] * 2
    assert not watch.hangs(0.0)


def test_a_turn_in_whose_midst_the_process_was_suspended_has_all_of_its_time_from_then_on() -> None:
    clock = _Clock()
    watch = HangWatch(0.5, 3.0, clock)
    assert looks(watch, clock, began=99.0, seconds=1) == [False] * 2
    watch.rests()
    clock.now += 3_600.0
    assert not watch.hangs(clock.now - 99.0)
    # The device, too, may need some time to go on.
    assert looks(watch, clock, began=99.0, seconds=4) == [False] * 6 + [True] * 2


def test_a_look_that_takes_long_itself_is_no_pause() -> None:
    """As where Redis is slow, which the heartbeat asks between two looks."""
    clock = _Clock()
    watch = HangWatch(0.5, 3.0, clock)
    said = []
    for _ in range(4):
        said += looks(watch, clock, began=100.0, seconds=0.5)
        clock.now += 1.5
    assert said == [False, False, True, True]
