"""Who may come in, decided by the head of a request before anything of the service is used for it."""

from __future__ import annotations

from collections.abc import Callable

from ingress.http.refusal import Refusal
from ingress.request import Request

Authenticate = Callable[[Request], Refusal | None]
"""Judges a request: None lets it in. Called on the event loop for streams, before their admission, and for
all endpoints alike. Not for the TCP port, where nothing is said before the messages."""


def everyone(request: Request) -> Refusal | None:
    """Lets everyone in."""
    return None
