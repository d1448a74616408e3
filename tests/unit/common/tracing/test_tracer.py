"""Tracing that is off, or that cannot be had."""

from __future__ import annotations

import sys

import pytest

from common.settings import SettingsError, parse
from common.tracing.tracer import NO_SPAN, NO_TRACER, checked_traceparent, make_tracer

GOOD = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"


def test_without_an_endpoint_nothing_is_traced_and_no_package_is_imported() -> None:
    imported = {name for name in sys.modules if name.startswith("opentelemetry")}
    tracer = make_tracer(parse("ingress", [], {}), "ingress", "i-1")
    assert tracer is NO_TRACER
    span = tracer.stream(GOOD, stream_id=1)
    assert span is NO_SPAN
    assert tracer.ownership(GOOD) is NO_SPAN
    assert span.traceparent == ""
    span.event("claimed", epoch=1)
    span.end(code="final")
    tracer.close()
    assert {name for name in sys.modules if name.startswith("opentelemetry")} == imported


def test_an_endpoint_without_the_package_is_a_wrong_value(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "common.tracing.otel", None)
    settings = parse("ingress", ["--trace-endpoint", "http://127.0.0.1:4318/v1/traces"], {})
    with pytest.raises(SettingsError, match="parakeet-server\\[otel\\]"):
        make_tracer(settings, "ingress", "i-1")


@pytest.mark.parametrize("endpoint", ["collector:4318", "ftp://collector", "http://"])
def test_an_endpoint_is_an_http_address(endpoint: str) -> None:
    with pytest.raises(SettingsError):
        parse("worker", ["--trace-endpoint", endpoint], {})


@pytest.mark.parametrize(
    "header",
    [
        None,
        "",
        GOOD.upper(),
        GOOD + "-00",
        GOOD[:-1],
        "00-" + "x" * 32 + GOOD[35:],
        GOOD + "\n",
        "a" * 60_000,
    ],
)
def test_what_is_no_traceparent_is_none(header: str | None) -> None:
    assert checked_traceparent(header) == ""
    assert checked_traceparent(GOOD) == GOOD
