"""Spans as OpenTelemetry has them."""

from __future__ import annotations

import threading
from collections.abc import Iterator

import pytest
from opentelemetry.sdk.trace.export import SpanExporter, SpanExportResult
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from opentelemetry.trace import SpanKind, StatusCode

from common.tracing.otel import OtelTracer
from common.tracing.tracer import NO_SPAN

CLIENT = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"
FACTS = {"service.name": "parakeet-ingress", "service.instance.id": "i-1"}


@pytest.fixture
def exporter() -> InMemorySpanExporter:
    return InMemorySpanExporter()


@pytest.fixture
def tracer(exporter: InMemorySpanExporter) -> Iterator[OtelTracer]:
    made = OtelTracer(exporter, FACTS, 1.0)
    yield made
    made.close()


def test_a_trace_goes_on_from_client_to_ingress_to_worker(
    tracer: OtelTracer, exporter: InMemorySpanExporter
) -> None:
    stream = tracer.stream(CLIENT, stream_id=7, key_name="desk")
    own = tracer.ownership(stream.traceparent, stream_id=7, epoch=1)
    stream.event("claimed", worker_id="w-1", epoch=1)
    own.end(decoded_samples=16_000)
    stream.end(code="final", audio_s=1.0)
    stream.end(code="client_gone")
    stream.event("late")
    tracer.close()
    worker, ingress = exporter.get_finished_spans()
    assert (ingress.name, ingress.kind) == ("stream", SpanKind.SERVER)
    assert (worker.name, worker.kind) == ("own", SpanKind.CONSUMER)
    assert ingress.context is not None
    assert f"{ingress.context.trace_id:032x}" == CLIENT.split("-")[1]
    assert ingress.parent is not None
    assert f"{ingress.parent.span_id:016x}" == CLIENT.split("-")[2]
    assert worker.parent is not None
    assert worker.parent.span_id == ingress.context.span_id
    assert ingress.attributes == {"stream_id": 7, "key_name": "desk", "code": "final", "audio_s": 1.0}
    assert [event.name for event in ingress.events] == ["claimed"]
    assert ingress.status.status_code is StatusCode.UNSET
    assert ingress.resource.attributes["service.instance.id"] == "i-1"


def test_an_error_is_an_error(tracer: OtelTracer, exporter: InMemorySpanExporter) -> None:
    tracer.stream("").end(code="no_worker")
    tracer.stream("").end(code="client_gone")
    tracer.close()
    failed, gone = exporter.get_finished_spans()
    assert failed.status.status_code is StatusCode.ERROR
    assert gone.status.status_code is StatusCode.UNSET
    assert failed.parent is None


def test_who_is_not_sampled_costs_nothing_further(exporter: InMemorySpanExporter) -> None:
    tracer = OtelTracer(exporter, FACTS, 0.0)
    assert tracer.stream("") is NO_SPAN
    assert tracer.stream(CLIENT[:-2] + "00") is NO_SPAN
    assert tracer.ownership("") is NO_SPAN
    # A client that traces is traced on.
    tracer.stream(CLIENT).end(code="final")
    tracer.close()
    assert len(exporter.get_finished_spans()) == 1


def test_a_collector_that_hangs_holds_up_no_end(monkeypatch: pytest.MonkeyPatch) -> None:
    asked, answer = threading.Event(), threading.Event()

    class _Hanging(SpanExporter):
        def export(self, spans: object) -> SpanExportResult:
            asked.set()
            answer.wait(30)
            return SpanExportResult.SUCCESS

        def shutdown(self) -> None:
            """Nothing."""

    monkeypatch.setattr("common.tracing.otel._CLOSE_S", 0.2)
    tracer = OtelTracer(_Hanging(), FACTS, 1.0)
    tracer.stream("").end(code="final")
    closing = threading.Thread(target=tracer.close)
    closing.start()
    assert asked.wait(60)
    closing.join(60)
    assert not closing.is_alive()
    answer.set()
