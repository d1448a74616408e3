"""The share of training that is done, by steps and by the clock."""

from __future__ import annotations

from types import SimpleNamespace

import pytest

from training.session.pace import StepPace, TimePace


def test_steps() -> None:
    pace = StepPace(200)
    assert [pace.progress(step) for step in (0, 50, 200, 300)] == [0.0, 0.25, 1.0, 1.0]
    assert pace.last_step == 200


def test_a_session_ends_training_whatever_share_was_done_before(monkeypatch: pytest.MonkeyPatch) -> None:
    times = iter((990.0, 1_000.0, 1_300.0, 1_600.0, 1_700.0))
    monkeypatch.setattr("training.session.pace.time", SimpleNamespace(monotonic=lambda: next(times)))
    pace = TimePace(0.4, 1_000.0, 1_600.0)
    found = [pace.progress(7) for _ in range(5)]
    assert found == pytest.approx([0.4, 0.4, 0.7, 1.0, 1.0])
    assert pace.last_step is None
