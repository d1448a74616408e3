"""The head of a request, as it travels from the socket to the code that answers."""

from __future__ import annotations

from dataclasses import dataclass

from ingress.auth.client import Client


@dataclass(frozen=True, slots=True)
class Request:
    """What a client said when it came.

    method: in capitals; empty on the TCP port, where nothing is said before the messages.
    path: with its percent escapes resolved.   query: what stands behind `?`, as it came.
    headers: names in small letters, in the order in which they came.
    address: of the client; behind a trusted proxy, the one that the proxy states.
    client: who it is, once that is known; None before, and on the TCP port of a server with keys.
    """

    method: str
    path: str
    query: str
    headers: tuple[tuple[str, str], ...]
    address: str
    client: Client | None = None

    @classmethod
    def without_head(cls, address: str) -> Request:
        """Return a connection on the TCP port."""
        return cls("", "", "", (), address)

    @property
    def comes_back(self) -> bool:
        """Whether the client says that it comes for a stream that it has: its key's limits do not count."""
        return any(field.partition("=")[0] == "resume" for field in self.query.split("&"))

    def header(self, name: str) -> str | None:
        """Return the value of a header, or None where it is missing.

        Values of a repeated header are joined by commas (RFC 9110, section 5.3). `name` is in small letters.
        """
        values = [value for each, value in self.headers if each == name]
        return ", ".join(values) if values else None

    def tokens(self, name: str) -> list[str]:
        """Return the members of a header that is a list, in small letters."""
        value = self.header(name)
        return [] if value is None else [token.strip().lower() for token in value.split(",")]
