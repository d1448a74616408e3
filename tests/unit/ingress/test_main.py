"""The process of an ingress."""

from __future__ import annotations

import uvloop

from ingress.__main__ import event_loop_factory


def test_an_ingress_runs_on_the_loop_that_its_tests_run_on() -> None:
    assert event_loop_factory() is uvloop.new_event_loop
