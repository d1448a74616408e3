"""The progress of a recording: a bar on a terminal, elsewhere a line from time to time."""

from __future__ import annotations

from collections.abc import Callable
from typing import Final

_BAR_CELLS: Final = 20
_LINE_EVERY_S: Final = 10.0


class Progress:
    """Compares the transcribed audio with the clock.

    total_s: length of the audio, None if it is unknown. clock: returns seconds, from any point on.
    """

    def __init__(self, total_s: float | None, clock: Callable[[], float]) -> None:
        self._total_s = total_s or None
        self._clock = clock
        self._started = self._line_at = clock()

    def bar(self, done_s: float) -> str:
        """Return the bar, for the beginning of a line."""
        if self._total_s is None:
            return f"{done_s:.0f} s {self._speed(done_s)} "
        share = min(1.0, done_s / self._total_s)
        full = int(share * _BAR_CELLS)
        return f"[{'#' * full}{'-' * (_BAR_CELLS - full)}] {share:4.0%} {self._speed(done_s)} "

    def line(self, done_s: float) -> str | None:
        """Return a line about the progress, None soon after the last line."""
        now = self._clock()
        if now - self._line_at < _LINE_EVERY_S:
            return None
        self._line_at = now
        whole = "" if self._total_s is None else f" of {self._total_s:.0f} s"
        return f"transcribed {done_s:.0f} s{whole}, {self._speed(done_s)} real time"

    def _speed(self, done_s: float) -> str:
        elapsed_s = self._clock() - self._started
        return f"{done_s / elapsed_s if elapsed_s else 0.0:.1f}x"
