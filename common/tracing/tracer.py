"""The tracing interface of ingress and worker, and the choice of its implementation.

A trace has one span for the stream at its ingress, and one for each worker that owns it. Chunks and messages
have no spans. The context is passed on in the stream's record, in the format of W3C Trace Context.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Final, Protocol

from common.errors import SettingsError
from common.process.version import package_version
from common.settings import ClusterSettings

_TRACEPARENT: Final = re.compile(r"[0-9a-f]{2}-[0-9a-f]{32}-[0-9a-f]{16}-[0-9a-f]{2}")


def checked_traceparent(header: str | None) -> str:
    """Return a client's `traceparent`; empty if it is invalid, as if it had not been sent."""
    return header if header is not None and _TRACEPARENT.fullmatch(header) else ""


class Span(Protocol):
    """One span. For one thread at a time."""

    @property
    def traceparent(self) -> str:
        """The context with which another process continues the trace; empty if it is not traced."""

    def event(self, name: str, **attributes: str | int | float) -> None:
        """Note that something happened now."""

    def end(self, **attributes: str | int | float) -> None:
        """End the span once; later calls change nothing."""


class Tracer(Protocol):
    """Makes spans."""

    def stream(self, traceparent: str, **attributes: str | int | float) -> Span:
        """Begin a stream's span at its ingress.

        traceparent: context of its client or of its record; empty for a new trace.
        """

    def ownership(self, traceparent: str, **attributes: str | int | float) -> Span:
        """Return the span of a stream at its owner; no span for an empty `traceparent`."""

    def close(self) -> None:
        """Send the remaining spans, within a bounded time."""


class _NoSpan:
    """The span of a stream that is not traced."""

    traceparent = ""

    def event(self, name: str, **attributes: str | int | float) -> None:
        """Nothing."""

    def end(self, **attributes: str | int | float) -> None:
        """Nothing."""


class _NoTracer:
    """The tracer when tracing is off."""

    def stream(self, traceparent: str, **attributes: str | int | float) -> Span:
        """Nothing."""
        return NO_SPAN

    def ownership(self, traceparent: str, **attributes: str | int | float) -> Span:
        """Nothing."""
        return NO_SPAN

    def close(self) -> None:
        """Nothing."""


NO_SPAN: Final[Span] = _NoSpan()
NO_TRACER: Final[Tracer] = _NoTracer()


def make_tracer(settings: ClusterSettings, role: str, process_id: str) -> Tracer:
    """Return the tracer that the settings ask for.

    role: `ingress` or `worker`. Raises SettingsError if the package for tracing is not installed.
    """
    if not settings.trace_endpoint:
        return NO_TRACER
    try:
        from common.tracing.otel import OtelTracer, exporter
    except ImportError as error:
        raise SettingsError(
            f"--trace-endpoint got {settings.trace_endpoint!r}, but takes the package's extra 'otel': "
            "pip install 'parakeet-server[otel]'."
        ) from error
    facts: Mapping[str, str] = {
        "service.name": f"parakeet-{role}",
        "service.instance.id": process_id,
        "service.version": package_version(),
    }
    return OtelTracer(exporter(settings.trace_endpoint), facts, settings.trace_ratio)
