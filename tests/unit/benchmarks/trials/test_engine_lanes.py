"""Lanes at engine level: processes feed one simulated device, and all of their streams end."""

from __future__ import annotations

from argparse import Namespace

from benchmarks.engine import ROWS
from benchmarks.trials.engine_lanes import run_lanes
from benchmarks.trials.engines import Switches


def test_lanes_feed_one_device() -> None:
    # With chunks so long that no machine is busy enough to make one late.
    given = Namespace(
        streams=7,
        lanes=2,
        seconds=3.0,
        arrival_s=0.5,
        replay_seconds=60.0,
        pace_ms=20.0,
        simulate=True,
        simulated_ms=3.0,
        simulated_row_us=1.0,
        device="cpu",
    )
    told = run_lanes(ROWS["large-1120"], given, Switches())
    assert told["finals"] == 7
    assert told["chunks"] == 7 * 2
    assert told["late_share"] == 0
    assert told["passed"]
    assert told["step_p50_ms"] >= 3.0
    assert told["lane_us_a_chunk"] > 0
    assert told["group_us_a_chunk"] > 0
    assert set(told["shares"]) == {"lane", "group's thread", "device"}
    assert told["full_first"] in told["shares"]
