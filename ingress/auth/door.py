"""Admits clients by the page's origin, then by the key, before the service does any work for them."""

from __future__ import annotations

import time
from collections.abc import Callable
from http import HTTPStatus
from typing import Final

from common.errors import ErrorCode, StreamError
from common.monitoring.metrics import IngressMetrics
from ingress.auth.client import ANYBODY, Client
from ingress.auth.credentials import Credential, Malformed, credential_from, credential_of
from ingress.auth.key_ring import KeyRing
from ingress.auth.origins import Origins
from ingress.auth.proxies import counted_as
from ingress.auth.throttle import Throttle
from ingress.auth.tokens import BadToken, read_token
from ingress.http.refusal import Refusal, Refused
from ingress.request import Request

# Failures from one address. A key has 256 random bits, so this is no defence against guessing: it bounds the
# cost of wrong keys. Right keys are accepted all the same, also where many clients share an address, so it
# has no flag.
FAILURES_PER_MINUTE: Final = 10
_TOO_MANY: Final = "Too many wrong keys came from this address."
_FOREIGN: Final = "Pages of this origin may not connect (--allowed-origins, --allowed-hosts)."
_CHALLENGE: Final = (("WWW-Authenticate", 'Bearer realm="parakeet"'),)


class _Unknown(Exception):  # noqa: N818 - the name says it
    """Credentials that are not valid; `reason` is a label of the metric."""

    def __init__(self, reason: str, sentence: str) -> None:
        super().__init__(sentence)
        self.reason = reason


class Door:
    """Authenticates clients.

    ring: the keys; None admits everybody. open_to_all: returns whether a request needs no key.
    now: monotonic seconds. unix_s: Unix time.
    """

    def __init__(
        self,
        ring: KeyRing | None,
        origins: Origins,
        metrics: IngressMetrics,
        open_to_all: Callable[[Request], bool],
        *,
        now: Callable[[], float] = time.monotonic,
        unix_s: Callable[[], float] = time.time,
    ) -> None:
        self._ring = ring
        self._origins = origins
        self._metrics = metrics
        self._open_to_all = open_to_all
        self._now = now
        self._unix_s = unix_s
        self._failures = Throttle()

    def admit_request(self, request: Request) -> Client:
        """Return the client of a request, by the request's head. Raises Refused."""
        if self._open_to_all(request):
            return ANYBODY
        if not self._origins.allow(request):
            self._metrics.auth_failures["origin"] += 1
            raise Refused(Refusal(HTTPStatus.FORBIDDEN, _FOREIGN))
        if self._ring is None:
            return ANYBODY
        try:
            return self._find(self._ring, lambda: credential_of(request))
        except _Unknown as error:
            if self._failed(request.address, error):
                raise Refused(Refusal(HTTPStatus.UNAUTHORIZED, str(error), _CHALLENGE)) from None
            who = counted_as(request.address)
            wait_s = self._failures.wait_s(who, FAILURES_PER_MINUTE, FAILURES_PER_MINUTE, self._now())
            headers = (("Retry-After", str(int(wait_s) + 1)),)
            raise Refused(Refusal(HTTPStatus.TOO_MANY_REQUESTS, _TOO_MANY, headers)) from None

    def admit_secret(self, secret: str, address: str) -> Client:
        """Return the client that holds a key, where no request exists (the TCP port). Raises StreamError."""
        if self._ring is None:
            return ANYBODY
        try:
            return self._find(self._ring, lambda: credential_from(secret))
        except _Unknown as error:
            sentence = str(error) if self._failed(address, error) else _TOO_MANY
            raise StreamError(ErrorCode.UNAUTHORIZED, sentence) from None

    def still_admits(self, client: Client) -> bool:
        """Return whether the key of a client that was admitted is still valid."""
        if self._ring is None or client.key is None:
            return True
        record = self._ring.record(client.key.key_id)
        return record is not None and record.is_valid(self._unix_s())

    def lacks_scope(self) -> None:
        """Count a client whose key lacks the scope for its request."""
        self._metrics.auth_failures["scope"] += 1

    def _find(self, ring: KeyRing, read: Callable[[], Credential | None]) -> Client:
        try:
            credential = read()
        except Malformed:
            raise _Unknown("malformed", "The credentials are malformed.") from None
        if credential is None:
            raise _Unknown("missing", "A key is needed: 'Authorization: Bearer KEY'.")
        secret = credential.secret
        if secret.startswith("pk_"):
            record = ring.find(secret)
            if record is None:
                raise _Unknown("unknown", "The key is not known.")
            client = Client(record)
        else:
            try:
                token = read_token(ring.token_secret, secret)
            except BadToken as error:
                if error.expired:
                    raise _Unknown("expired", "The token has expired.") from None
                raise _Unknown("unknown", "The key is not known.") from None
            record = ring.record(token.key_id)
            if record is None:
                raise _Unknown("unknown", "The key of this token is not known.")
            client = Client(record, by_token=True, session=token.session)
        if not record.is_valid(self._unix_s()):
            raise _Unknown("expired", "The key is revoked or has expired.")
        return client

    def _failed(self, address: str, error: _Unknown) -> bool:
        """Count a failure; return False if the address has had so many that it gets no more answers.

        A right key is accepted nevertheless: nobody guesses 256 random bits, and one client would otherwise
        shut out all clients that share its address (behind a proxy, or in one office).
        """
        told = self._failures.take(counted_as(address), FAILURES_PER_MINUTE, FAILURES_PER_MINUTE, self._now())
        self._metrics.auth_failures[error.reason if told else "throttled"] += 1
        return told
