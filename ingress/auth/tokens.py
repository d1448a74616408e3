"""Temporary tokens: what a browser gets instead of a key.

A holder of a key asks for one and hands it on. It is a JSON Web Token (RFC 7519, HS256), signed with the
secret of the keys file, so every ingress that has the file accepts it. It opens streams and nothing else,
counts as its key's for every limit, and ends with its key.
"""

from __future__ import annotations

import time
from dataclasses import dataclass
from typing import Any, Final

import jwt

from common.auth.api_key import KEY_ID_PATTERN, KeyId

AUDIENCE: Final = "parakeet"
# A token opens streams, and need not last as long as they do: a minute is enough for most pages.
MAX_TTL_S: Final = 3600
DEFAULT_TTL_S: Final = 30
_ALGORITHM: Final = "HS256"
# With a session in it; `Authorization` may be as long (credentials.py).
_MAX_LENGTH: Final = 4096


class BadToken(Exception):  # noqa: N818 - the name says it
    """A token that opens nothing. expired: it once did."""

    def __init__(self, *, expired: bool) -> None:
        super().__init__("expired" if expired else "malformed")
        self.expired = expired


@dataclass(frozen=True, slots=True)
class Token:
    """What a valid token says: whose it is, and until when (Unix time).

    session: what a realtime session opened with it is set to, as JSON; empty for nothing.
    """

    key_id: KeyId
    expires_s: int
    session: str = ""


def make_token(
    secret: str, key_id: KeyId, ttl_s: int, now_s: float | None = None, session: str = ""
) -> tuple[str, int]:
    """Return a token of a key and the Unix time at which it ends; `ttl_s` is 1 to MAX_TTL_S.

    session: see `Token`. Raises ValueError for one that makes the token too long.
    """
    if not 1 <= ttl_s <= MAX_TTL_S:
        raise ValueError(f"a token lives 1 to {MAX_TTL_S} seconds")
    issued_s = int(time.time() if now_s is None else now_s)
    claims = {"aud": AUDIENCE, "sub": key_id, "iat": issued_s, "exp": issued_s + ttl_s}
    if session:
        claims["session"] = session
    text = jwt.encode(claims, secret, algorithm=_ALGORITHM)
    if len(text) > _MAX_LENGTH:
        raise ValueError(f"a token has at most {_MAX_LENGTH} characters")
    return text, issued_s + ttl_s


def read_token(secret: str, text: str) -> Token:
    """Check a token. Raises BadToken."""
    if len(text) > _MAX_LENGTH:
        raise BadToken(expired=False)
    try:
        claims: dict[str, Any] = jwt.decode(
            text,
            secret,
            algorithms=[_ALGORITHM],
            audience=AUDIENCE,
            options={"require": ["exp", "aud", "sub"]},
        )
    except jwt.ExpiredSignatureError:
        raise BadToken(expired=True) from None
    except jwt.InvalidTokenError:
        raise BadToken(expired=False) from None
    key_id = claims["sub"]
    if not KEY_ID_PATTERN.fullmatch(key_id):
        raise BadToken(expired=False)
    session = claims.get("session", "")
    if not isinstance(session, str):
        raise BadToken(expired=False)
    return Token(KeyId(key_id), int(claims["exp"]), session)
