"""Who may come in, decided by the head of a request before anything of the service is used for it."""

from __future__ import annotations

from collections.abc import Callable

from ingress.auth.client import ANYBODY, Client
from ingress.request import Request

Authenticate = Callable[[Request], Client]
"""Judges a request, and returns who sends it; raises Refused. Called on the event loop for streams, before
their admission, and for all endpoints alike. Not for the TCP port, where the first message shows the key."""


def everyone(request: Request) -> Client:
    """Lets everyone in."""
    return ANYBODY
