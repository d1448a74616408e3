"""An API key: `pk_<id>_<secret>`.

The id finds the key's record. The secret is 256 random bits, so a plain SHA-256 protects it, and a slow hash
would only let strangers burn CPU. Only the digest of the whole key is ever stored.
"""

from __future__ import annotations

import hashlib
import hmac
import re
import secrets
from typing import Final, NewType

KeyId = NewType("KeyId", str)

_ID_LENGTH: Final = 8
_ID_LETTERS: Final = "abcdefghijkmnpqrstuvwxyz23456789"
_SECRET_BYTES: Final = 32
_KEY: Final = re.compile(rf"pk_([{_ID_LETTERS}]{{{_ID_LENGTH}}})_([A-Za-z0-9_-]{{43}})")

KEY_ID_PATTERN: Final = re.compile(rf"[{_ID_LETTERS}]{{{_ID_LENGTH}}}")


def new_api_key() -> tuple[KeyId, str]:
    """Return a new key: its id and the whole key, which is shown once and stored nowhere."""
    key_id = "".join(secrets.choice(_ID_LETTERS) for _ in range(_ID_LENGTH))
    return KeyId(key_id), f"pk_{key_id}_{secrets.token_urlsafe(_SECRET_BYTES)}"


def key_id_of(key: str) -> KeyId | None:
    """Return the id in a key; None where the text does not have the form of a key."""
    match = _KEY.fullmatch(key)
    return KeyId(match[1]) if match else None


def fits_a_header(key: str) -> bool:
    """Return whether a key or a token is visible ASCII without spaces, as an HTTP header requires."""
    return all("!" <= character <= "~" for character in key)


def digest_of(key: str) -> str:
    """Return the digest that is stored of a key: SHA-256, as hexadecimal digits."""
    return hashlib.sha256(key.encode()).hexdigest()


def is_key(key: str, digest: str) -> bool:
    """Return whether the key has this digest; takes the same time for every answer."""
    return hmac.compare_digest(digest_of(key), digest)
