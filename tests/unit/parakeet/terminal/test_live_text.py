"""Partial results on a terminal and elsewhere."""

from __future__ import annotations

import io

import pytest

from parakeet.terminal.live_text import LiveText


class Terminal(io.StringIO):
    """An output that says that it is a terminal."""

    def isatty(self) -> bool:
        return True


def test_a_terminal_shows_the_text_in_place_and_its_end_where_it_is_narrow(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("COLUMNS", "20")
    output = Terminal()
    live = LiveText(output, prefix="> ")
    live.show("go")
    live.show("go")
    live.show("go forward ten meters more")
    live.clear()
    shown = output.getvalue().split("\r\x1b[K")
    assert shown == ["", "> go", "> … ten meters more", ""]
    assert len(shown[2]) == 19


def test_what_is_kept_stands_in_a_line_of_its_own_above_what_is_spoken(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("COLUMNS", "20")
    output = Terminal()
    live = LiveText(output, prefix="> ")
    live.show("go forward", "1 s ")
    live.keep("go forward ten meters more.")
    live.keep("go forward ten meters more.")
    live.show("go forward ten meters more.", "2 s ")
    live.show("go forward ten meters more. Stop", "3 s ")
    live.clear()
    shown = output.getvalue().split("\r\x1b[K")
    assert shown == ["", "> 1 s go forward", "> go forward ten meters more.\n", "> 2 s ", "> 3 s Stop", ""]


def test_elsewhere_each_change_is_a_line() -> None:
    output = io.StringIO()
    live = LiveText(output, prefix="> ")
    for text in ("go", "go", "go forward"):
        live.show(text)
        live.keep(text)
    live.clear()
    assert output.getvalue() == "> go\n> go forward\n"


def test_without_partials_nothing_is_shown() -> None:
    output = io.StringIO()
    live = LiveText(output, partials=False)
    live.show("go")
    live.clear()
    assert output.getvalue() == ""
