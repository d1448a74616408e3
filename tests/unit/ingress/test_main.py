"""The process of an ingress."""

from __future__ import annotations

import sys

import pytest
import uvloop

from common.errors import InternalFault, RedisUnavailable, ServiceError
from ingress import __main__ as program
from ingress.__main__ import event_loop_factory


def test_an_ingress_runs_on_the_loop_that_its_tests_run_on() -> None:
    assert event_loop_factory() is uvloop.new_event_loop


@pytest.mark.parametrize(
    ("error", "has_traceback"),
    [
        (RedisUnavailable("It is away."), False),
        (ServiceError("It cannot be used."), False),
        (OSError("No room."), False),
        (InternalFault(), True),
        (ValueError("A defect."), True),
    ],
)
def test_the_log_has_the_traceback_of_a_defect_alone(
    error: Exception,
    has_traceback: bool,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    async def failing(settings: object) -> None:
        raise BaseExceptionGroup("tasks", [error])

    monkeypatch.setattr(sys, "argv", ["ingress"])
    monkeypatch.setattr(program, "serve", failing)
    monkeypatch.setattr(program, "configure_or_exit", lambda *_, **__: None)
    monkeypatch.setattr(program, "collect_rarely", lambda *_: None)
    assert program.main() == 1
    (record,) = caplog.records
    assert (record.exc_info is not None) is has_traceback
