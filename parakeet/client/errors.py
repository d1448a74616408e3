"""The errors of a client's stream."""

from __future__ import annotations

from typing import Final

from common.errors import ParakeetError, Retry, retry_of


class ClientError(ParakeetError):
    """The stream ended without its final result.

    may_retry: whether the same may succeed when it is tried again later.
    retry_after_s: seconds that a server asked to wait before that, None where it did not say.
    """

    may_retry: bool = False
    retry_after_s: float | None = None


class ServerError(ClientError):
    """The server ended the stream, or refused it, with an `error` message.

    code: stable, see docs/protocol.md.
    """

    def __init__(self, code: str, message: str) -> None:
        super().__init__(f"{code}: {message}")
        self.code: Final = code
        self.message: Final = message
        self.may_retry = retry_of(code) is not Retry.NO


class ConnectionLost(ClientError):  # noqa: N818 - the name says it
    """The connection was lost and could not be resumed."""

    may_retry = True


class ServerSilent(ClientError):  # noqa: N818 - the name says it
    """The server did not answer within a time-out."""

    may_retry = True


class UnusableKey(ParakeetError, ValueError):  # noqa: N818 - the name says it
    """An API key that no header can carry: nothing is sent, and no attempt with it could succeed."""

    def __init__(self) -> None:
        # Without the key: it may be most of a real one.
        super().__init__(
            "The API key has a character that no key has: all of them are visible ASCII, without spaces."
        )


class ClientBug(ClientError):  # noqa: N818 - the name says it
    """The client itself failed with an unexpected error, which is `__cause__`."""
