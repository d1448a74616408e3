"""No process needs more time to stop than what started it gives."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
import yaml

from common.process.stop_times import STOP_MARGIN_S
from common.settings import parse
from ingress import server
from ingress.sockets import linger

ROOT = Path(__file__).parents[4]
DRAIN_S = parse("serve", [], {}).ingress.drain_timeout_s


def test_an_ingress_stops_within_the_margin() -> None:
    # Two bounded steps of the backplane's stop, then sockets that linger.
    assert 2 * server._STOP_TIMEOUT_S + linger.LINGER_S < STOP_MARGIN_S / 2


@pytest.mark.parametrize("service", ["ingress", "gpu_worker", "cpu_worker"])
def test_compose_waits_for_drain_and_margin(service: str) -> None:
    compose: Any = yaml.safe_load((ROOT / "compose.yaml").read_text(encoding="utf-8"))
    given = compose["services"][service]
    # Who gives streams more time gives the containers more.
    assert given["environment"]["PARAKEET_DRAIN_TIMEOUT_S"] == f"${{DRAIN_TIMEOUT_S:-{DRAIN_S:g}}}"
    assert given["stop_grace_period"] == f"${{STOP_GRACE:-{DRAIN_S + STOP_MARGIN_S:g}s}}"


@pytest.mark.parametrize("name", ["README.md", "keda-worker.yaml", "hpa-ingress.yaml"])
def test_manifests_say_drain_and_margin(name: str) -> None:
    text = (ROOT / "deploy" / name).read_text(encoding="utf-8")
    periods = re.findall(r"terminationGracePeriodSeconds: (\d+)", text)
    assert periods == [f"{DRAIN_S + STOP_MARGIN_S:g}"]
