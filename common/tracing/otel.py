"""Spans of OpenTelemetry. Imported only where tracing is on, since its packages are an extra."""

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

# A collector that does not answer costs spans and nothing else: streams wait for none of these.
_EXPORT_TIMEOUT_S: Final = 5
_MAX_QUEUED: Final = 2048
_CLOSE_S: Final = 3.0
# Ends of a stream that are nobody's fault.
_GOOD_ENDS: Final = ("final", "client_gone")

_propagator: Final = TraceContextTextMapPropagator()


def exporter(endpoint: str) -> SpanExporter:
    """Return what sends spans by OTLP over HTTP; the standard variables hold (OTEL_EXPORTER_OTLP_HEADERS)."""
    from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter

    return OTLPSpanExporter(endpoint=endpoint, timeout=_EXPORT_TIMEOUT_S)


class OtelTracer:
    """A `Tracer`.

    exporter: where spans go, in batches, from a thread of the SDK's; with too many, the newest are dropped.
    facts: of this process.   ratio: of traces that begin here; a client's own says itself whether it is one.
    """

    def __init__(self, exporter: SpanExporter, facts: Mapping[str, str], ratio: float) -> None:
        sampler = ParentBased(TraceIdRatioBased(ratio))
        self._provider = TracerProvider(sampler=sampler, resource=Resource.create(dict(facts)))
        self._provider.add_span_processor(BatchSpanProcessor(exporter, max_queue_size=_MAX_QUEUED))
        self._tracer = self._provider.get_tracer("parakeet")

    def stream(self, traceparent: str, **attributes: str | int | float) -> Span:
        """Return a stream at its ingress."""
        return self._span("stream", SpanKind.SERVER, traceparent, attributes)

    def ownership(self, traceparent: str, **attributes: str | int | float) -> Span:
        """Return a stream at its owner."""
        if not traceparent:
            return NO_SPAN
        return self._span("own", SpanKind.CONSUMER, traceparent, attributes)

    def _span(
        self, name: str, kind: SpanKind, traceparent: str, attributes: Mapping[str, str | int | float]
    ) -> Span:
        parent = _propagator.extract({"traceparent": traceparent}) if traceparent else None
        # Of a context of its own: nothing that this thread did before is its parent.
        span = self._tracer.start_span(name, context=parent, kind=kind, attributes=dict(attributes))
        return OtelSpan(span) if span.is_recording() else NO_SPAN

    def close(self) -> None:
        """Send what is left; a collector that does not answer is not waited for."""
        closing = threading.Thread(target=self._provider.shutdown, name="tracing", daemon=True)
        closing.start()
        closing.join(_CLOSE_S)


class OtelSpan:
    """A `Span`."""

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
        """End it; with a `code` that is an error's, as an error."""
        if not self._span.is_recording():
            return
        self._span.set_attributes(attributes)
        code = attributes.get("code")
        if code is not None and code not in _GOOD_ENDS:
            self._span.set_status(Status(StatusCode.ERROR, str(code)))
        self._span.end()
