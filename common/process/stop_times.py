"""Times that a process may take to stop, beyond the time for its streams (`--drain-timeout-s`).

A worker keeps to HAND_OVER_S and JOIN_S. Its parent kills it after STOP_MARGIN_S: `serve` does so here, and a
container engine by `stop_grace_period` or `terminationGracePeriodSeconds`.
"""

from __future__ import annotations

from time import monotonic
from typing import Final

HAND_OVER_S: Final = 10.0
"""A worker hands its streams over within this time; other workers take the rest when its lease lapses."""
JOIN_S: Final = 5.0
"""Longest wait of a worker for one of its threads. They end within milliseconds unless Redis hangs."""
STOP_MARGIN_S: Final = HAND_OVER_S + 4 * JOIN_S
"""Claimers, intakes, engine and outlet have to end before a hand-over is in Redis.

There is one claimer and one intake a server; those of all servers end in parallel.
The remaining threads then hold nothing of a stream. An ingress needs less than half of this time.
"""


class StopClock:
    """The time in which a process has to stop; time that one step does not use is left for later steps."""

    def __init__(self, total_s: float) -> None:
        self._ends_at = monotonic() + total_s

    def left_s(self, most_s: float) -> float:
        """Return the seconds that the next step may take: at most `most_s`, and never below 0."""
        return max(0.0, min(most_s, self._ends_at - monotonic()))
