"""Spans of OpenTelemetry. Imported only if tracing is on, since its packages are an extra."""

from __future__ import annotations

import threading
from collections.abc import Mapping
from typing import Final

from opentelemetry.sdk.resources import Resource
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import BatchSpanProcessor, SpanExporter
from opentelemetry.sdk.trace.sampling import ParentBased, TraceIdRatioBased
from opentelemetry.trace import Span as SdkSpan
from opentelemetry.trace import SpanKind, Status, StatusCode, set_span_in_context
from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

from common.tracing.tracer import NO_SPAN, Span

# Without an answer of the collector spans are lost, but streams do not wait for it.
_EXPORT_TIMEOUT_S: Final = 5
_MAX_QUEUED: Final = 2048
_CLOSE_S: Final = 3.0
# Ends of a stream that are no error.
_GOOD_ENDS: Final = ("final", "client_gone")

_propagator: Final = TraceContextTextMapPropagator()


def exporter(endpoint: str) -> SpanExporter:
    """Return an exporter of OTLP over HTTP; it reads the standard variables (OTEL_EXPORTER_OTLP_HEADERS)."""
    from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter

    return OTLPSpanExporter(endpoint=endpoint, timeout=_EXPORT_TIMEOUT_S)


class OtelTracer:
    """A `Tracer` with OpenTelemetry.

    exporter: exporter of spans, which a thread of the SDK sends in batches; with too many, the newest are
    dropped. facts: attributes of this process. ratio: share of traces that begin here; a client's own context
    states whether it is sampled.
    """

    def __init__(self, exporter: SpanExporter, facts: Mapping[str, str], ratio: float) -> None:
        sampler = ParentBased(TraceIdRatioBased(ratio))
        self._provider = TracerProvider(sampler=sampler, resource=Resource.create(dict(facts)))
        self._provider.add_span_processor(BatchSpanProcessor(exporter, max_queue_size=_MAX_QUEUED))
        self._tracer = self._provider.get_tracer("parakeet")

    def stream(self, traceparent: str, **attributes: str | int | float) -> Span:
        """Return the span of a stream at its ingress."""
        return self._span("stream", SpanKind.SERVER, traceparent, attributes)

    def ownership(self, traceparent: str, **attributes: str | int | float) -> Span:
        """Return the span of a stream at its owner."""
        if not traceparent:
            return NO_SPAN
        return self._span("own", SpanKind.CONSUMER, traceparent, attributes)

    def _span(
        self, name: str, kind: SpanKind, traceparent: str, attributes: Mapping[str, str | int | float]
    ) -> Span:
        parent = _propagator.extract({"traceparent": traceparent}) if traceparent else None
        # The span has a context of its own: no earlier span of this thread is its parent.
        span = self._tracer.start_span(name, context=parent, kind=kind, attributes=dict(attributes))
        return OtelSpan(span) if span.is_recording() else NO_SPAN

    def close(self) -> None:
        """Send the remaining spans; do not wait for a collector that does not answer."""
        closing = threading.Thread(target=self._provider.shutdown, name="tracing", daemon=True)
        closing.start()
        closing.join(_CLOSE_S)


class OtelSpan:
    """A `Span` of OpenTelemetry."""

    __slots__ = ("_span", "traceparent")

    def __init__(self, span: SdkSpan) -> None:
        self._span = span
        carrier: dict[str, str] = {}
        _propagator.inject(carrier, set_span_in_context(span))
        self.traceparent: Final = carrier["traceparent"]

    def event(self, name: str, **attributes: str | int | float) -> None:
        """Note that something happened now."""
        self._span.add_event(name, attributes)

    def end(self, **attributes: str | int | float) -> None:
        """End the span; with the `code` of an error, as an error."""
        if not self._span.is_recording():
            return
        self._span.set_attributes(attributes)
        code = attributes.get("code")
        if code is not None and code not in _GOOD_ENDS:
            self._span.set_status(Status(StatusCode.ERROR, str(code)))
        self._span.end()
