"""What a connection asks of access control: who a key is, and whether the key may have one stream more."""

from __future__ import annotations

from typing import Final, Protocol

from common.errors import ErrorCode, StreamError
from ingress.auth.client import ANYBODY, Client


class OverLimit(StreamError):  # noqa: N818 - the name says it
    """A key has all that it may have. retry_after_s: when it may have more, or when to look again."""

    def __init__(self, message: str, retry_after_s: int) -> None:
        super().__init__(ErrorCode.OVER_LIMIT, message)
        self.retry_after_s: Final = retry_after_s


class Guard(Protocol):
    """Watches over the streams of keys."""

    def identify(self, secret: str) -> Client:
        """Return who shows this key. Raises StreamError `unauthorized`."""

    async def enter(self, client: Client | None, num_streams: int) -> None:
        """Count new streams of a client. Raises OverLimit or RedisUnavailable, within a bounded time."""

    def resumed(self, client: Client | None, num_streams: int) -> None:
        """Count streams that a client had before: no limit refuses them."""

    def leave(self, client: Client | None, num_streams: int) -> None:
        """Count streams less."""

    def heard(self, client: Client | None, audio_s: float) -> None:
        """Count audio of a client."""

    def check_audio(self, client: Client | None) -> None:
        """Raise OverLimit where the client has had its audio of this day, as far as is known here."""


class NoGuard:
    """The guard of a server without keys: everybody may have everything."""

    def identify(self, secret: str) -> Client:
        """Return anybody: a key is not asked for, and does no harm."""
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
