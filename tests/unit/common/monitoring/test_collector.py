"""What a scrape shows is what was counted, and promtool's rules for names hold."""

from __future__ import annotations

import re
import shutil
import subprocess
from pathlib import Path

import pytest
from prometheus_client import generate_latest
from prometheus_client.parser import text_string_to_metric_families

from common.monitoring.collector import ingress_registry, worker_registry
from common.monitoring.docs import DOCUMENT, document
from common.monitoring.families import GROUP, INGRESS, WORKER, Family
from common.monitoring.metrics import GroupMetrics, Histogram, IngressMetrics, WorkerMetrics

ROOT = Path(__file__).parents[4]


def rendered(metrics: IngressMetrics | WorkerMetrics) -> bytes:
    """Return a scrape."""
    if isinstance(metrics, IngressMetrics):
        return generate_latest(ingress_registry(lambda: metrics))
    return generate_latest(worker_registry(lambda: metrics))


def scraped(metrics: IngressMetrics | WorkerMetrics) -> dict[str, dict[tuple[str, ...], float]]:
    """Return the samples of a scrape, by name and label values."""
    text = rendered(metrics).decode()
    samples: dict[str, dict[tuple[str, ...], float]] = {}
    for family in text_string_to_metric_families(text):
        for sample in family.samples:
            samples.setdefault(sample.name, {})[tuple(sample.labels.values())] = sample.value
    return samples


@pytest.mark.parametrize(
    ("kind", "families"), [(IngressMetrics, INGRESS), (WorkerMetrics, WORKER), (GroupMetrics, GROUP)]
)
def test_a_process_counts_exactly_the_families_of_the_table(
    kind: type[IngressMetrics] | type[WorkerMetrics] | type[GroupMetrics], families: tuple[Family, ...]
) -> None:
    assert list(vars(kind())) == [family.attribute for family in families]
    assert list(kind.__annotations__) == [family.attribute for family in families]


@pytest.mark.parametrize(
    ("folder", "families"), [("ingress", INGRESS), ("gpu_worker", WORKER), ("gpu_worker/lanes", GROUP)]
)
def test_every_family_is_counted_by_some_code(folder: str, families: tuple[Family, ...]) -> None:
    sources = "\n".join(path.read_text() for path in (ROOT / folder).rglob("*.py"))
    never = [one.name for one in families if not re.search(rf"\.{one.attribute}\b", sources)]
    assert never == []


def test_a_scrape_shows_counters_gauges_and_labels() -> None:
    metrics = IngressMetrics()
    metrics.connections["tcp"] = 3
    metrics.errors["bad_json"] += 2
    metrics.audio_seconds += 1.5
    samples = scraped(metrics)
    assert samples["parakeet_ingress_connections"] == {("tcp",): 3, ("websocket",): 0, ("http",): 0}
    assert samples["parakeet_ingress_errors_total"][("bad_json",)] == 2
    assert samples["parakeet_ingress_audio_seconds_total"] == {(): 1.5}
    assert list(samples["parakeet_build_info"].values()) == [1]
    assert samples["process_resident_memory_bytes"][()] > 1e6


def test_a_histogram_counts_a_value_at_its_bound_in_the_bucket_of_the_bound() -> None:
    metrics = WorkerMetrics()
    for value in (0.001, 0.002, 0.0021, 99.0):
        metrics.step_seconds.observe(value)
    buckets = scraped(metrics)["parakeet_worker_step_seconds_bucket"]
    assert buckets[("0.002",)] == 2
    assert buckets[("0.005",)] == 3
    assert buckets[("2.56",)] == 3
    assert buckets[("+Inf",)] == 4
    assert scraped(metrics)["parakeet_worker_step_seconds_sum"] == {(): pytest.approx(99.0051)}
    assert scraped(metrics)["parakeet_worker_step_seconds_count"] == {(): 4}


def test_a_histogram_of_no_values_is_all_zero() -> None:
    assert Histogram((1.0, 2.0)).cumulative() == [0, 0, 0]


@pytest.mark.parametrize("metrics", [IngressMetrics(), WorkerMetrics()], ids=["ingress", "worker"])
def test_a_process_has_less_than_four_hundred_series(metrics: IngressMetrics | WorkerMetrics) -> None:
    assert sum(map(len, scraped(metrics).values())) < 400


def test_the_gauges_are_brought_up_to_date_at_the_scrape() -> None:
    metrics = IngressMetrics()

    def read() -> IngressMetrics:
        metrics.draining += 1
        return metrics

    registry = ingress_registry(read)
    assert b"parakeet_ingress_draining 1.0" in generate_latest(registry)
    assert b"parakeet_ingress_draining 2.0" in generate_latest(registry)


@pytest.mark.parametrize("metrics", [IngressMetrics(), WorkerMetrics()], ids=["ingress", "worker"])
def test_promtool_accepts_the_metrics(metrics: IngressMetrics | WorkerMetrics) -> None:
    promtool = shutil.which("promtool")
    if promtool is None:
        pytest.skip("promtool is not installed (Debian: prometheus)")
    text = rendered(metrics)
    checked = subprocess.run([promtool, "check", "metrics"], input=text, capture_output=True, timeout=30)
    assert checked.returncode == 0, checked.stdout.decode() + checked.stderr.decode()


def test_the_document_is_that_of_the_code() -> None:
    assert DOCUMENT.read_text() == document(), "python -m common.monitoring.docs writes it"
