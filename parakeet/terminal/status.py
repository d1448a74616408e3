"""The command `parakeet-server status`: prints the status port's answer as a table or as JSON."""

from __future__ import annotations

import json
import socket
import sys
import time
from collections.abc import Mapping
from typing import Any

from common.addresses import bare_host, host_and_port
from common.errors import ServiceError
from common.settings import StatusSettings

# An ingress says that its Redis does not answer after two times --redis-timeout-ms, 10 s by default.
TIMEOUT_S = 15.0
MAX_ANSWER_BYTES = 1 << 20


class NoStatus(ServiceError):  # noqa: N818 - the name says it
    """The status port does not answer, or its answer is not a status."""


def read_status(host: str, port: int, timeout_s: float = TIMEOUT_S) -> dict[str, Any]:
    """Return the answer of a status port; raise NoStatus if there is none."""
    host, address = bare_host(host), host_and_port(host, port)
    answer = b""
    try:
        with socket.create_connection((host, port), timeout_s) as connection:
            deadline = time.monotonic() + timeout_s
            while not answer.endswith(b"\n") and len(answer) < MAX_ANSWER_BYTES:
                connection.settimeout(max(deadline - time.monotonic(), 0.001))
                part = connection.recv(65_536)
                if not part:
                    break
                answer += part
    except (OSError, UnicodeError) as error:
        reason = getattr(error, "strerror", None) or error
        raise NoStatus(f"No server answers at the status port {address}: {reason}.") from error
    try:
        parsed = json.loads(answer)
    except ValueError:
        parsed = None
    if not isinstance(parsed, dict) or parsed.get("type") not in {"status", "error"}:
        raise NoStatus(f"{address} answers, but not as a status port does.")
    if parsed["type"] == "error":
        raise NoStatus(f"The server cannot tell its status: {parsed.get('message')}")
    return parsed


def table(status: Mapping[str, Any]) -> str:
    """Return the status as readable text: one block for each part of the answer, in its order."""
    lines: list[str] = []
    width = max(
        (len(name) for part in status.values() if isinstance(part, Mapping) for name in part), default=0
    )
    width = max(width, *(len(name) for name, part in status.items() if not isinstance(part, Mapping)))
    for name, part in status.items():
        if name == "type":
            continue
        if isinstance(part, Mapping):
            lines += ["", name.replace("_", " ")]
            lines += [f"  {key.replace('_', ' '):<{width}}  {_number(value)}" for key, value in part.items()]
        else:
            lines.append(f"{name.replace('_', ' '):<{width + 2}}  {_number(part)}")
    return "\n".join(lines)


def _number(value: object) -> str:
    return (
        f"{value:>12,.1f}"
        if isinstance(value, float)
        else f"{value:>12,}"
        if isinstance(value, int)
        else str(value)
    )


def show_status(settings: StatusSettings) -> int:
    """Print the status once or repeatedly; return 0 if the port answered."""
    as_json = settings.json or not sys.stdout.isatty()
    while True:
        answer = read_status(settings.host, settings.status_port)
        sys.stdout.write((json.dumps(answer) if as_json else table(answer)) + "\n")
        sys.stdout.flush()
        if not settings.watch_s:
            return 0
        time.sleep(settings.watch_s)
        if not as_json:
            # Clear the terminal, so that the figures change in place.
            sys.stdout.write("\x1b[2J\x1b[H")
