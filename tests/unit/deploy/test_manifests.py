"""The autoscaling examples watch keys that exist."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import yaml

from common.redis.keys import ASSIGNMENT_GROUP, Keys

DEPLOY = Path(__file__).parents[3] / "deploy"


def load(name: str) -> Any:
    return yaml.safe_load((DEPLOY / name).read_text())


def test_workers_scale_by_the_assignments() -> None:
    triggers = load("keda-worker.yaml")["spec"]["triggers"]
    assert [trigger["type"] for trigger in triggers] == ["redis-streams"] * 2
    for trigger in triggers:
        assert trigger["metadata"]["stream"].encode() == Keys().assignments(0)
        assert trigger["metadata"]["consumerGroup"].encode() == ASSIGNMENT_GROUP
        assert all(isinstance(value, str) for value in trigger["metadata"].values()), "KEDA takes strings"


def test_ingresses_scale_below_one_core() -> None:
    (metric,) = load("hpa-ingress.yaml")["spec"]["metrics"]
    assert metric["resource"]["target"]["averageValue"] == "600m"
