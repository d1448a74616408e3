"""Health checks: HTTP probes for whether a process is alive, ready and started.

`/livez` answers whether the process still makes progress. A failed probe restarts the process, so it never
queries Redis. `/readyz` answers whether new work should come here, `/startupz` whether start-up is over.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import orjson

Reasons = Callable[[], list[str]]
"""Returns why a check fails, as short names; an empty list where it passes. Called from any thread."""


@dataclass(frozen=True, slots=True)
class HealthChecks:
    """The checks of one process."""

    live: Reasons
    ready: Reasons
    started: Reasons


@dataclass(frozen=True, slots=True)
class HealthAnswer:
    """An answer to a probe: an HTTP status and a JSON body."""

    status: str
    body: bytes


def answer_probe(checks: HealthChecks, path: str) -> HealthAnswer | None:
    """Return the answer to a probe; None for a path that is no probe's."""
    match path:
        case "/livez":
            return _answer(checks.live(), "live", "not_live")
        case "/readyz":
            return _answer(checks.ready(), "ready", "not_ready")
        case "/startupz":
            return _answer(checks.started(), "started", "starting")
        case "/v1/health/live":
            return _health_response(checks.live(), "live")
        case "/v1/health/ready":
            return _health_response(checks.ready(), "ready")
    return None


_OK = "200 OK"
_UNAVAILABLE = "503 Service Unavailable"


def _answer(reasons: list[str], passed: str, failed: str) -> HealthAnswer:
    if reasons:
        return HealthAnswer(_UNAVAILABLE, orjson.dumps({"status": failed, "reasons": reasons}))
    return HealthAnswer(_OK, orjson.dumps({"status": passed}))


def _health_response(reasons: list[str], passed: str) -> HealthAnswer:
    """Answer in the shape that NVIDIA's NIM containers use, so that their probes work here."""
    status = f"not_{passed}" if reasons else passed
    message = ", ".join(reasons) or f"The service is {passed}."
    body = orjson.dumps({"object": "health.response", "message": message, "status": status})
    return HealthAnswer(_UNAVAILABLE if reasons else _OK, body)
