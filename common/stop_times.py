"""How long a process may take to stop, beyond the time that its streams are given (`--drain-timeout-s`).

A worker keeps to HAND_OVER_S and JOIN_S; what started a process kills it after STOP_MARGIN_S: `serve` here, a
container engine by `stop_grace_period` or `terminationGracePeriodSeconds`.
"""

from __future__ import annotations

from typing import Final

HAND_OVER_S: Final = 10.0
"""A worker hands its streams over within this time; what is left is taken from it when its lease lapses."""
JOIN_S: Final = 5.0
"""A worker waits so long for one of its threads. They end within milliseconds unless Redis hangs."""
STOP_MARGIN_S: Final = HAND_OVER_S + 4 * JOIN_S
"""Claimer, intake, engine and outlet have to end before a hand-over is in Redis.

The threads that are left then hold nothing of a stream. An ingress needs less than half of this.
"""
