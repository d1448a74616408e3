"""Renders a process's metrics for Prometheus, only when it is scraped."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence

from prometheus_client import CollectorRegistry, ProcessCollector
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily, Metric
from prometheus_client.registry import Collector

from common.monitoring.families import BUILD_INFO, GROUP, INGRESS, WORKER, Family
from common.monitoring.metrics import GroupMetrics, Histogram, IngressMetrics, WorkerMetrics
from common.process.version import package_version


class MetricsCollector(Collector):
    """Renders a process's metrics by the rows of `families`.

    read: returns the metrics with their gauges up to date; called in the scraping thread.
    """

    def __init__(self, role: str, families: Sequence[Family], read: Callable[[], object]) -> None:
        self._role = role
        self._families = families
        self._read = read

    def describe(self) -> list[Metric]:
        """Return nothing: the registry then reads no metrics when the collector is registered."""
        return []

    def collect(self) -> Iterator[Metric]:
        """Yield every family with its present values."""
        metrics = self._read()
        info = GaugeMetricFamily(BUILD_INFO, "1; its labels say what runs.", labels=("version", "role"))
        info.add_metric((package_version(), self._role), 1)
        yield info
        for family in self._families:
            yield _rendered(family, getattr(metrics, family.attribute))


def _rendered(family: Family, value: object) -> Metric:
    if isinstance(value, Histogram):
        histogram = HistogramMetricFamily(family.name, family.help)
        cumulative = value.cumulative()
        bounds = (*value.bounds, math.inf)
        buckets = [(_bound(bound), count) for bound, count in zip(bounds, cumulative, strict=True)]
        histogram.add_metric((), buckets, value.sum)
        return histogram
    make = CounterMetricFamily if family.kind == "counter" else GaugeMetricFamily
    metric = make(family.name, family.help, labels=(family.label,) if family.label else ())
    if isinstance(value, dict):
        for name, number in value.items():
            metric.add_metric((name,), number)
    else:
        assert isinstance(value, int | float)
        metric.add_metric((), value)
    return metric


def _bound(bound: float) -> str:
    return "+Inf" if math.isinf(bound) else repr(bound)


def ingress_registry(read: Callable[[], IngressMetrics]) -> CollectorRegistry:
    """Return the metrics of an ingress: its own, and the process's memory, CPU and files."""
    return _registry(MetricsCollector("ingress", INGRESS, read))


def worker_registry(read: Callable[[], WorkerMetrics]) -> CollectorRegistry:
    """Return the metrics of a worker: its own, and the process's memory, CPU and files."""
    return _registry(MetricsCollector("worker", WORKER, read))


def group_registry(read: Callable[[], GroupMetrics]) -> CollectorRegistry:
    """Return the metrics of a group of lanes: its own, and the process's memory, CPU and files."""
    return _registry(MetricsCollector("group", GROUP, read))


def _registry(collector: MetricsCollector) -> CollectorRegistry:
    registry = CollectorRegistry(auto_describe=False)
    ProcessCollector(registry=registry)
    registry.register(collector)
    return registry
