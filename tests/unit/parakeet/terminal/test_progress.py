"""How far a recording is, on a terminal and elsewhere."""

from __future__ import annotations

from parakeet.terminal.progress import Progress


def test_a_bar_shows_the_share_and_the_speed() -> None:
    now = [100.0]
    progress = Progress(60.0, lambda: now[0])
    assert progress.bar(0.0) == "[--------------------]   0% 0.0x "
    now[0] += 2.0
    assert progress.bar(30.0) == "[##########----------]  50% 15.0x "
    assert progress.bar(61.0) == "[####################] 100% 30.5x "


def test_without_a_length_the_audio_so_far_is_shown() -> None:
    now = [0.0]
    progress = Progress(None, lambda: now[0])
    now[0] = 4.0
    assert progress.bar(10.0) == "10 s 2.5x "


def test_elsewhere_a_line_comes_every_ten_seconds() -> None:
    now = [0.0]
    progress = Progress(120.0, lambda: now[0])
    lines = []
    for second in range(25):
        now[0] = float(second)
        lines.append(progress.line(second * 4.0))
    assert [line for line in lines if line] == [
        "transcribed 40 s of 120 s, 4.0x real time",
        "transcribed 80 s of 120 s, 4.0x real time",
    ]
