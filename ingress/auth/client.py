"""An authenticated client: the holder of a key, or anybody where the server has no keys."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

from common.auth.api_key import KeyId
from common.auth.keys_file import KeyRecord

KEY_ENDED: Final = "The key was revoked, or has expired."
NOT_FOR_STREAMS: Final = "The key lacks the scope 'stream'."


@dataclass(frozen=True, slots=True)
class Client:
    """An authenticated client.

    key: the record of its key; None where the server has no keys. by_token: it showed a temporary token.
    session: the token's configuration of a realtime session, as JSON; empty for none.
    """

    key: KeyRecord | None = None
    by_token: bool = False
    session: str = ""

    @property
    def key_id(self) -> KeyId | None:
        """The id of its key."""
        return None if self.key is None else self.key.key_id

    @property
    def name(self) -> str:
        """The name of its key, for logs; empty where the server has no keys."""
        return "" if self.key is None else self.key.name

    @property
    def is_limited(self) -> bool:
        """Whether its key has limits, so that Redis has to be asked before it gets a stream."""
        return self.key is not None and self.key.is_limited

    def may(self, scope: str) -> bool:
        """Return whether it has this scope. A temporary token has only the scope that opens streams."""
        if self.key is None:
            return True
        return scope in self.key.scopes and (scope == "stream" or not self.by_token)


ANYBODY: Final = Client()
