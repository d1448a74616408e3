"""The interface of access control to a connection: who holds a key, and whether it may have more streams."""

from __future__ import annotations

from typing import Final, Protocol

from common.errors import ErrorCode, StreamError
from ingress.auth.client import ANYBODY, Client


class OverLimit(StreamError):  # noqa: N818 - the name says it
    """A key has reached a limit. retry_after_s: seconds until it may have more, or may ask again."""

    def __init__(self, message: str, retry_after_s: int) -> None:
        super().__init__(ErrorCode.OVER_LIMIT, message)
        self.retry_after_s: Final = retry_after_s


class Guard(Protocol):
    """Counts the streams and the audio of keys, and refuses those over a limit."""

    def identify(self, secret: str) -> Client:
        """Return the client that holds this key. Raises StreamError `unauthorized`."""

    async def enter(self, client: Client | None, num_streams: int) -> None:
        """Count new streams of a client. Raises OverLimit or RedisUnavailable, within a bounded time."""

    def resumed(self, client: Client | None, num_streams: int) -> None:
        """Count resumed streams of a client: no limit refuses them."""

    def leave(self, client: Client | None, num_streams: int) -> None:
        """Subtract ended streams of a client."""

    def heard(self, client: Client | None, audio_s: float) -> None:
        """Add seconds of audio of a client."""

    def check_audio(self, client: Client | None) -> None:
        """Raise OverLimit where the client has used up its audio of this day, to this ingress's knowledge."""


class NoGuard:
    """The guard of a server without keys: it limits nobody."""

    def identify(self, secret: str) -> Client:
        """Return the anonymous client: a key is not required, and is ignored."""
        return ANYBODY

    async def enter(self, client: Client | None, num_streams: int) -> None:
        """Count nothing."""

    def resumed(self, client: Client | None, num_streams: int) -> None:
        """Count nothing."""

    def leave(self, client: Client | None, num_streams: int) -> None:
        """Count nothing."""

    def heard(self, client: Client | None, audio_s: float) -> None:
        """Count nothing."""

    def check_audio(self, client: Client | None) -> None:
        """Refuse nothing."""


NO_GUARD: Final = NoGuard()
