"""The model of the path: what it is fitted to it gives back, and its queues behave."""

from __future__ import annotations

import pytest

from benchmarks.scaling_model import CHUNK_S, Cost, Machine, fit, predict

MACHINE = Machine(cores=8)
COSTS = {
    "ingress": Cost(100e-6, 50e-6),
    "redis": Cost(40e-6, 30e-6),
    "worker": Cost(300e-6, 50e-6),
    "bench": Cost(50e-6, 24e-6),
}


def test_fit_gives_back_the_costs_that_made_the_figures() -> None:
    batches_per_s = {"ingress": 200 + 1 / 0.006, "redis": 200 + 3 / 0.006, "worker": 1 / 0.006, "bench": 500}
    trials = [
        {
            "streams": streams,
            "parts": [
                {
                    "role": role,
                    "cpu_cores": cost.batch_s * batches_per_s[role] + streams * cost.chunk_s / CHUNK_S,
                }
                for role, cost in COSTS.items()
            ],
        }
        for streams in (250, 500, 1000)
    ]
    for role, cost in fit(trials, MACHINE).items():
        assert cost.batch_s == pytest.approx(COSTS[role].batch_s)
        assert cost.chunk_s == pytest.approx(COSTS[role].chunk_s)


def test_latency_grows_with_the_load_and_breaks_where_a_part_is_full() -> None:
    light, heavy, full = (predict(MACHINE, COSTS, streams, 2.5) for streams in (200, 1500, 4500))
    assert light.stable
    assert heavy.stable
    assert light.p50_ms < heavy.p50_ms
    assert not full.stable  # the ingress would need 1.4 cores
    assert heavy.busy["redis"] == pytest.approx(1500 * 30e-6 / CHUNK_S, rel=0.25)


def test_more_processes_carry_what_one_cannot() -> None:
    wider = Machine(cores=16, ingresses=3, redis=2, workers=3, benches=2)
    assert predict(wider, COSTS, 4500, 2.5).stable


def test_too_few_cores_are_felt() -> None:
    assert predict(Machine(cores=1), COSTS, 900, 4.0).p50_ms > 1.5 * predict(MACHINE, COSTS, 900, 4.0).p50_ms
