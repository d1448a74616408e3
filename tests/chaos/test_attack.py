"""Attackers of every kind beside honest streams, for some seconds; `make attack` has it all."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.attack.__main__ import run
from tests.attack.report import figures_of

pytestmark = [pytest.mark.chaos, pytest.mark.timeout(900)]

# A machine that has other work tells nothing of latencies.
_TOLD_ELSEWHERE = "latency of results, p99"


async def test_honest_streams_have_the_same_texts_beside_an_attack(tmp_path: Path) -> None:
    seen = await run(
        seconds=12.0,
        alone_s=3.0,
        each=1,
        kinds=(),
        seed=1,
        folder=tmp_path,
        on_progress=lambda *_: None,
    )
    missed = [figure for figure in figures_of(seen) if not figure.passed and figure.name != _TOLD_ELSEWHERE]
    assert missed == [], (seen.beside.failures, seen.log_faults, seen.attack["leaks"], seen.left)
    assert min(seen.attack["actions"].values()) > 0
