"""The head of a request, for all code between the socket and the answer."""

from __future__ import annotations

from dataclasses import dataclass

from ingress.auth.client import Client


@dataclass(frozen=True, slots=True)
class Request:
    """The head of one request.

    method: in capitals; empty on the TCP port, where no head precedes the messages.
    path: with its percent escapes resolved.   query: the text after `?`, as it came.
    headers: names in lower case, in the order in which they came.
    address: the client's address; behind a trusted proxy, the address that the proxy states.
    client: the client, once it is authenticated; None before, and on the TCP port of a server with keys.
    """

    method: str
    path: str
    query: str
    headers: tuple[tuple[str, str], ...]
    address: str
    client: Client | None = None

    @classmethod
    def without_head(cls, address: str) -> Request:
        """Return the request of a connection on the TCP port."""
        return cls("", "", "", (), address)

    @property
    def comes_back(self) -> bool:
        """Whether the client announces that it resumes a stream, for which its key's limits do not count."""
        return any(field.partition("=")[0] == "resume" for field in self.query.split("&"))

    def header(self, name: str) -> str | None:
        """Return the value of a header, or None where it is missing.

        Values of a repeated header are joined by commas (RFC 9110, section 5.3). `name` is in lower case.
        """
        values = [value for each, value in self.headers if each == name]
        return ", ".join(values) if values else None

    def tokens(self, name: str) -> list[str]:
        """Return the members of a header that is a list, in lower case."""
        value = self.header(name)
        return [] if value is None else [token.strip().lower() for token in value.split(",")]
