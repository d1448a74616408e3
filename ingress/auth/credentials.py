"""Credentials of a request, read from `Authorization` or from the subprotocols that a browser offers.

A key in the query is ignored: addresses end up in logs.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

from ingress.request import Request

_SCHEMES: Final = ("bearer", "token")
_OWN_PROTOCOL: Final = "parakeet.v1"
_OWN_PREFIX: Final = "parakeet.auth."
_OPENAI_PROTOCOL: Final = "realtime"
_OPENAI_PREFIX: Final = "openai-insecure-api-key."
MAX_SECRET_LENGTH: Final = 4096
"""Longest key or token, in characters."""


@dataclass(frozen=True, slots=True)
class Credential:
    """A key or a temporary token, as a client showed it."""

    secret: str


class Malformed(Exception):  # noqa: N818 - the name says it
    """Credentials in a form that this server does not know."""


def credential_of(request: Request) -> Credential | None:
    """Return the credential of a request; None where it has none. Raises Malformed."""
    authorization = request.header("authorization")
    if authorization is not None:
        scheme, _, secret = authorization.strip().partition(" ")
        if scheme.lower() not in _SCHEMES or not secret.strip():
            raise Malformed
        return credential_from(secret)
    offered = subprotocols_of(request)
    for at, protocol in enumerate(offered):
        if protocol.lower() in _SCHEMES and at + 1 < len(offered):
            return credential_from(offered[at + 1])
        for prefix in (_OWN_PREFIX, _OPENAI_PREFIX):
            if protocol.startswith(prefix):
                return credential_from(protocol.removeprefix(prefix))
    return None


def credential_from(secret: str) -> Credential:
    """Return the credential of a secret, wherever a client showed it. Raises Malformed."""
    secret = secret.strip()
    if not secret or len(secret) > MAX_SECRET_LENGTH or not secret.isascii():
        raise Malformed
    return Credential(secret)


def subprotocols_of(request: Request) -> list[str]:
    """Return the subprotocols that a request offers, in its order."""
    value = request.header("sec-websocket-protocol")
    return [] if value is None else [part.strip() for part in value.split(",") if part.strip()]


def answered_subprotocol(offered: list[str]) -> str | None:
    """Return the offered subprotocol that the answer names: never one that holds a secret."""
    for protocol in offered:
        if protocol in (_OWN_PROTOCOL, _OPENAI_PROTOCOL) or protocol.lower() in _SCHEMES:
            return protocol
    for protocol in offered:
        if not protocol.startswith((_OWN_PREFIX, _OPENAI_PREFIX)):
            return protocol
    return None
