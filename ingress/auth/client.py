"""Who speaks: the holder of a key, or anybody where the server has no keys."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

from common.auth.api_key import KeyId
from common.auth.keys_file import KeyRecord

NOT_FOR_STREAMS: Final = "The key lacks the scope 'stream'."


@dataclass(frozen=True, slots=True)
class Client:
    """A client that was let in.

    key: whose it is; None where the server has no keys. by_token: it showed a temporary token.
    session: what the token sets a realtime session to, as JSON; empty for nothing.
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
        """What logs call it; empty for anybody."""
        return "" if self.key is None else self.key.name

    @property
    def is_limited(self) -> bool:
        """Whether its key has limits, so that it has to be asked about."""
        return self.key is not None and self.key.is_limited

    def may(self, scope: str) -> bool:
        """Return whether it may do what the scope stands for. A temporary token opens streams alone."""
        if self.key is None:
            return True
        return scope in self.key.scopes and (scope == "stream" or not self.by_token)


ANYBODY: Final = Client()
