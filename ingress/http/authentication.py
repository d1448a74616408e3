"""Authentication of a request by its head, before the service does any work for it."""

from __future__ import annotations

from collections.abc import Callable

from ingress.auth.client import ANYBODY, Client
from ingress.request import Request

Authenticate = Callable[[Request], Client]
"""Authenticates a request, and returns its client; raises Refused. Called on the event loop, for streams
before their admission and for all endpoints. Not for the TCP port, where the first message shows the key."""


def everyone(request: Request) -> Client:
    """Return the anonymous client for every request."""
    return ANYBODY
