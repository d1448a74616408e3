"""When the intake reads; what it reads is tested on real servers."""

from __future__ import annotations

from typing import Any

import pytest

from common.entries import StreamId, WorkerId
from common.monitoring.metrics import WorkerMetrics
from common.redis.clients import RedisServers
from common.redis.keys import Keys
from gpu_worker.pipeline.flow import StreamTable
from gpu_worker.pipeline.intake import Intake


class _Clock:
    """Stands for the module `time`, and for a reader that has news at the given times."""

    def __init__(self, *news_at: float) -> None:
        self.now = 100.0
        self._news_at = list(news_at)
        self.rounds_at: list[float] = []

    def monotonic(self) -> float:
        return self.now

    def sleep(self, seconds: float) -> None:
        self.now += seconds

    def wait(self, _block_ms: int, _max_streams: int, _on_wait: object = None) -> list[StreamId]:
        self.now = max(self.now, self._news_at.pop(0))
        self.rounds_at.append(self.now)
        return []


@pytest.mark.parametrize(
    ("news_at", "rounds_at"),
    [
        # one ingress, whose commits are 10 ms apart; then two
        ((100.010, 100.020, 100.030), [100.010, 100.020, 100.030]),
        ((100.010, 100.013, 100.020, 100.023), [100.010, 100.013, 100.020, 100.023]),
        # many: one may come early, then they keep their distance
        ((100.010, 100.011, 100.012, 100.013), [100.010, 100.011, 100.015, 100.020]),
    ],
)
def test_rounds_follow_the_commits_of_few_ingresses_and_are_held_back_for_many(
    monkeypatch: pytest.MonkeyPatch, news_at: tuple[float, ...], rounds_at: list[float]
) -> None:
    clock: Any = _Clock(*news_at)
    monkeypatch.setattr("gpu_worker.pipeline.intake.time", clock)
    intake = Intake(
        servers=RedisServers.parse(("unix:///nowhere/redis.sock",)),
        server=0,
        keys=Keys(),
        worker=WorkerId("w"),
        table=StreamTable(1),
        put=lambda *_: None,
        metrics=WorkerMetrics(),
        on_lost=lambda _: None,
    )
    monkeypatch.setattr(intake, "_reader", clock)
    for _ in news_at:
        intake._round()
    assert clock.rounds_at == pytest.approx(rounds_at)
