"""Alert rules and dashboard use metrics that exist, with labels that exist; promtool accepts the rules."""

from __future__ import annotations

import re
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final

import orjson
import pytest
import yaml

from common.monitoring.families import BUILD_INFO, GROUP, INGRESS, WORKER, Family

FOLDER: Final = Path("deploy/monitoring")
FAMILIES: Final = (*INGRESS, *WORKER, *GROUP)
# Metrics of others: the scraper's own, those of every process, and those of redis_exporter.
FOREIGN: Final = {
    "up",
    "process_open_fds",
    "process_max_fds",
    "process_cpu_seconds_total",
    "process_start_time_seconds",
    "process_resident_memory_bytes",
    "redis_memory_used_bytes",
    "redis_memory_max_bytes",
}
SCRAPED_LABELS: Final = {"instance", "job", "le"}
_SELECTOR: Final = re.compile(r"\b([a-z_]+(?::[a-z_0-9:]+)?)(?:\{([^}]*)\})?")
_GROUPING: Final = re.compile(r"\bby \(([^)]*)\)")
_MATCHER: Final = re.compile(r'(\w+)(=~|=)"([^"]*)"')


def series() -> dict[str, Family]:
    """Return every series name that a process shows, with its family."""
    names: dict[str, Family] = {}
    for family in FAMILIES:
        suffixes = ("_bucket", "_sum", "_count") if family.kind == "histogram" else ("",)
        names |= {family.name + suffix: family for suffix in suffixes}
    return names


def rules() -> list[dict[str, Any]]:
    document = yaml.safe_load((FOLDER / "alerts.yaml").read_text())
    return [rule for group in document["groups"] for rule in group["rules"]]


def expressions() -> Iterator[str]:
    for rule in rules():
        yield rule["expr"]
    dashboard = orjson.loads((FOLDER / "dashboard.json").read_bytes())
    for panel in dashboard["panels"]:
        for target in panel.get("targets", ()):
            yield target["expr"]


@pytest.mark.parametrize("expression", sorted(set(expressions())))
def test_every_metric_label_and_label_value_exists(expression: str) -> None:
    ours = series()
    recorded = {rule["record"] for rule in rules() if "record" in rule}
    labels = set(SCRAPED_LABELS)
    found = 0
    for name, matchers in _SELECTOR.findall(expression):
        if name in ours:
            family = ours[name]
            labels.add(family.label)
            for label, _, values in _MATCHER.findall(matchers):
                assert label in {family.label, *SCRAPED_LABELS}, (name, label)
                if label == family.label:
                    assert set(values.split("|")) <= set(family.values), (name, values)
        elif ":" in name:
            assert name in recorded, f"there is no recorded {name}"
        else:
            assert not name.startswith("parakeet"), f"there is no metric {name}"
            assert not name.startswith(("process_", "redis_")) or name in FOREIGN, name
        found += name in ours or name in FOREIGN or name in recorded
    assert found, "the expression uses no metric"
    for group in _GROUPING.findall(expression):
        assert {label.strip() for label in group.split(",")} <= labels, expression


def test_every_family_but_a_few_is_shown_or_alerted_on() -> None:
    """A metric that nobody looks at is no reason to count; these say more than a panel needs."""
    shown = " ".join(expressions())
    unseen = {family.attribute for family in FAMILIES if family.name not in shown}
    assert unseen == {
        "results",
        "results_merged",
        "audio_seconds",
        "stream_duration_seconds",
        "ready_streams",
        "step_streams",
        "step_rows",
        "tokens",
        "claims",
        "fenced_writes",
        "snapshots",
        "smart_turn_verdicts",
    }
    assert BUILD_INFO not in shown


@pytest.mark.parametrize(
    "command", [["check", "rules", "alerts.yaml"], ["test", "rules", "alerts_test.yaml"]]
)
def test_promtool_accepts_the_rules(command: list[str]) -> None:
    promtool = shutil.which("promtool")
    if promtool is None:
        pytest.skip("promtool is not installed (Debian: prometheus)")
    run = subprocess.run([promtool, *command], cwd=FOLDER, capture_output=True, text=True, timeout=60)
    assert run.returncode == 0, run.stdout + run.stderr
