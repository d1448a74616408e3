"""Temporary tokens, which a browser uses instead of a key.

The holder of a key requests a token and hands it on. The token is a JSON Web Token (RFC 7519, HS256), signed
with the secret of the keys file, so every ingress that has the file accepts it. It opens streams and nothing
else, counts towards every limit of its key, and becomes invalid with its key.
"""

from __future__ import annotations

import time
from dataclasses import dataclass
from typing import Any, Final

import jwt

from common.auth.api_key import KEY_ID_PATTERN, KeyId
from ingress.auth.credentials import MAX_SECRET_LENGTH

AUDIENCE: Final = "parakeet"
# A token need only last until the stream is open: a minute is enough for most pages.
MAX_TTL_S: Final = 3600
DEFAULT_TTL_S: Final = 30
_ALGORITHM: Final = "HS256"


class BadToken(Exception):  # noqa: N818 - the name says it
    """A token that is not valid. expired: it was valid before."""

    def __init__(self, *, expired: bool) -> None:
        super().__init__("expired" if expired else "malformed")
        self.expired = expired


@dataclass(frozen=True, slots=True)
class Token:
    """The content of a valid token: the id of its key, and when it expires (Unix time).

    session: the configuration of a realtime session that is opened with it, as JSON; empty for none.
    """

    key_id: KeyId
    expires_s: int
    session: str = ""


def make_token(
    secret: str, key_id: KeyId, ttl_s: int, now_s: float | None = None, session: str = ""
) -> tuple[str, int]:
    """Return a token of a key and the Unix time at which it expires; `ttl_s` is 1 to MAX_TTL_S.

    session: see `Token`. Raises ValueError where the session makes the token too long.
    """
    if not 1 <= ttl_s <= MAX_TTL_S:
        raise ValueError(f"a token lives 1 to {MAX_TTL_S} seconds")
    issued_s = int(time.time() if now_s is None else now_s)
    claims = {"aud": AUDIENCE, "sub": key_id, "iat": issued_s, "exp": issued_s + ttl_s}
    if session:
        claims["session"] = session
    text = jwt.encode(claims, secret, algorithm=_ALGORITHM)
    if len(text) > MAX_SECRET_LENGTH:
        raise ValueError(f"a token has at most {MAX_SECRET_LENGTH} characters")
    return text, issued_s + ttl_s


def read_token(secret: str, text: str) -> Token:
    """Check a token and return its content. Raises BadToken."""
    if len(text) > MAX_SECRET_LENGTH:
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
