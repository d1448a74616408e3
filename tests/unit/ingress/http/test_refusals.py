"""What is said of refused requests, however many there are."""

from __future__ import annotations

import logging
from http import HTTPStatus

import pytest

from common.monitoring.metrics import IngressMetrics
from ingress.http.refusal import Refusal
from ingress.http.refusals import LINES_AT_ONCE, LINES_PER_MINUTE, Refusals
from ingress.request import Request

_LONG = Request("GET", "/" + "x" * 70_000, "", (), "192.0.2.1")
_REFUSAL = Refusal(HTTPStatus.NOT_FOUND, "There is nothing at this path.")


def test_a_flood_is_counted_whole_and_has_few_and_short_lines(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)
    metrics, now = IngressMetrics(), 0.0
    refusals = Refusals(metrics, lambda: now)
    for _ in range(10_000):
        assert refusals.note(_REFUSAL, _LONG) is _REFUSAL
    assert metrics.refused_requests["404"] == 10_000
    assert len(caplog.records) == LINES_AT_ONCE
    assert max(len(record.getMessage()) for record in caplog.records) < 300
    now += 60 / LINES_PER_MINUTE
    refusals.note(_REFUSAL, None)
    last = caplog.records[-1].getMessage()
    assert last.startswith("refused: 404, no request, key -: There is nothing at this path.")
    assert last.endswith(f"({10_000 - LINES_AT_ONCE} more before it)")


def test_a_status_without_a_label_is_another() -> None:
    metrics = IngressMetrics()
    Refusals(metrics).note(Refusal(HTTPStatus.IM_A_TEAPOT, "No."), None)
    assert metrics.refused_requests["other"] == 1
